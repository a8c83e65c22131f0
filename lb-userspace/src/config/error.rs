//! What is wrong with settings, in words that name place, value and what to write instead.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::settings::Place;

/// A wrong setting.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value that cannot be used.
    #[error("{place}: {value} is wrong: {fix}")]
    Value {
        /// Where it was given.
        place: Place,
        /// As it was given, quoted.
        value: String,
        /// What to write instead.
        fix: String,
    },
    /// A setting without which the agent cannot work.
    #[error("--{flag} is missing: {fix}")]
    Missing {
        /// The setting's flag.
        flag: &'static str,
        /// What to do.
        fix: String,
    },
    /// A file that is no configuration.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that cannot be read.
    #[error("--config {}: cannot read the file", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// All wrong settings of a start, one a line; never empty.
#[derive(Debug, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let line = if i == 0 { "" } else { "\n" };
            write!(f, "{line}{error}")?;
            if let Some(source) = std::error::Error::source(error) {
                write!(f, ": {source}")?;
            }
        }
        Ok(())
    }
}

/// The known name that differs least from `name`, if any is near.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let name = name.to_lowercase();
    let (distance, best) = known.map(|k| (edits(&name, &k.to_lowercase()), k)).min()?;
    (distance <= name.len() / 3).then_some(best)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
