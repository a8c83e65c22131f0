//! The configuration file after the start: kube-proxy ends when its file changes, to be started again with the new content, and so does an agent
//! that has such a file.
//!
//! The file is read again and again instead of being watched: a ConfigMap is mounted as links that are swapped two folders away from
//! the file's name. A file that is half written, or not there for a moment, is no other content yet.

use std::path::PathBuf;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// A file and what was read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFile {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

impl ReadFile {
    /// Waits until two looks in a row have found the same other content.
    pub async fn changed(&self) {
        let mut last = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let found = tokio::fs::read(&self.path).await.ok();
            let found = found.filter(|found| found != self.text.as_bytes());
            if found.is_some() && found == last {
                return;
            }
            last = found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tokio::time::timeout;

    async fn is_changed(file: &ReadFile) -> bool {
        timeout(4 * LOOK, file.changed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn content_counts_and_not_the_file_that_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // As the kubelet mounts a ConfigMap.
        for (version, text) in [("..1", "a"), ("..2", "a"), ("..3", "b")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("c.conf"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/c.conf", at("c.conf")).unwrap();
        let file = ReadFile {
            path: at("c.conf"),
            text: "a".to_owned(),
        };
        assert!(!is_changed(&file).await);
        let swap = |version: &str| {
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        swap("..2");
        assert!(!is_changed(&file).await);
        swap("..3");
        assert!(is_changed(&file).await);
        fs::remove_file(at("..data")).unwrap();
        assert!(!is_changed(&file).await);
    }
}
