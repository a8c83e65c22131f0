//! Writes OCI image archives, as `ctr images import` reads them (<https://github.com/opencontainers/image-spec>).
//!
//! In: images as lists of folders. Out: one tar file; a folder that several images share is in it once.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::exec;

/// An image.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Full names with tags.
    pub(super) names: Vec<String>,
    /// Folders with its files, the lowest first.
    pub(super) layers: Vec<PathBuf>,
    /// The program and its first arguments.
    pub(super) entrypoint: Vec<String>,
    /// Arguments that a pod may replace.
    pub(super) command: Vec<String>,
    /// User and group, by number; empty for root.
    pub(super) user: String,
}

/// Writes `images` to `archive`; `work` is a folder for what is made on the way.
pub(super) fn write(work: &Path, images: &[Image], archive: &Path) -> Result<()> {
    let layout = work.join("layout");
    let blobs = Blobs {
        folder: layout.join("blobs/sha256"),
    };
    fs::create_dir_all(&blobs.folder)?;
    let mut layers: BTreeMap<&Path, Value> = BTreeMap::new();
    for folder in images.iter().flat_map(|image| &image.layers) {
        if !layers.contains_key(folder.as_path()) {
            layers.insert(folder, blobs.layer(folder)?);
        }
    }
    let mut manifests = Vec::new();
    for image in images {
        let own: Vec<&Value> = image
            .layers
            .iter()
            .filter_map(|folder| layers.get(folder.as_path()))
            .collect();
        let config = blobs.json("application/vnd.oci.image.config.v1+json", &config(image, &own))?;
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": own });
        let manifest = blobs.json(MANIFEST, &manifest)?;
        for name in &image.names {
            let mut entry = manifest.clone();
            entry["platform"] = json!({ "architecture": ARCHITECTURE, "os": "linux" });
            entry["annotations"] =
                json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag(name) });
            manifests.push(entry);
        }
    }
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    fs::write(layout.join("index.json"), index.to_string())?;
    exec::output(
        Command::new("tar")
            .arg("-cf")
            .arg(archive)
            .arg("-C")
            .arg(&layout)
            .arg("."),
    )
    .map(drop)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of Go's names of architectures.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

fn config(image: &Image, layers: &[&Value]) -> Value {
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    json!({ "architecture": ARCHITECTURE, "os": "linux",
        "config": { "Entrypoint": image.entrypoint, "Cmd": image.command, "User": image.user, "WorkingDir": "/",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": digests } })
}

/// The part of a name after the last colon.
fn tag(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or_default()
}

struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// A layer of a folder's files, all root's.
    fn layer(&self, folder: &Path) -> Result<Value> {
        let partial = self.folder.join("partial");
        exec::output(
            Command::new("tar")
                .args([
                    "--sort=name",
                    "--owner=0",
                    "--group=0",
                    "--numeric-owner",
                    "--mtime=@0",
                    "-cf",
                ])
                .arg(&partial)
                .arg("-C")
                .arg(folder)
                .arg("."),
        )?;
        self.add("application/vnd.oci.image.layer.v1.tar", &partial)
    }

    fn json(&self, kind: &str, value: &Value) -> Result<Value> {
        let partial = self.folder.join("partial");
        fs::write(&partial, value.to_string())?;
        self.add(kind, &partial)
    }

    /// Gives a file the name of its digest and returns its descriptor.
    fn add(&self, kind: &str, partial: &Path) -> Result<Value> {
        let size = fs::metadata(partial)?.len();
        let said = exec::output(Command::new("sha256sum").arg(partial))?;
        let digest = said.split_whitespace().next().context("sha256sum said nothing")?;
        fs::rename(partial, self.folder.join(digest))?;
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_each_folder_once_and_names_every_image() {
        let work = tempfile::tempdir().unwrap();
        let layer = work.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("file"), "content").unwrap();
        let image = |name: &str| Image {
            names: vec![name.to_owned()],
            layers: vec![layer.clone()],
            entrypoint: vec![format!("/{name}")],
            command: Vec::new(),
            user: String::new(),
        };
        let archive = work.path().join("images.tar");
        write(work.path(), &[image("a:1"), image("b:2")], &archive).unwrap();
        let list = exec::output(Command::new("tar").arg("-tf").arg(&archive)).unwrap();
        let blobs = list
            .lines()
            .filter(|line| line.starts_with("./blobs/sha256/") && !line.ends_with('/'));
        assert_eq!(blobs.count(), 1 + 2 + 2, "{list}");
        let index = fs::read_to_string(work.path().join("layout/index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["manifests"][1]["annotations"]["io.containerd.image.name"], "b:2");
    }
}
