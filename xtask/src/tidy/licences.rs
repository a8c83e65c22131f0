//! Rules on where third-party code comes from and under which licence, read from `cargo metadata`.
//!
//! Every crate comes from the registry (its exact version is in Cargo.lock) and may be used under a permissive
//! licence: one that asks for no more than naming its authors. Licences are SPDX expressions
//! (<https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/>); the old form `MIT/Apache-2.0` means OR.

use serde_json::Value;

use super::Finding;

const PERMISSIVE: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    // Of a list of root certificates, which only other systems than Linux compile in.
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks source and licence of every package in the output of `cargo metadata`.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    if packages.is_empty() {
        findings.push(Finding::new("Cargo.lock", 0, "cargo metadata names no packages"));
    }
    for package in packages {
        let name = format!(
            "{} {}",
            package["name"].as_str().unwrap_or("?"),
            package["version"].as_str().unwrap_or("?")
        );
        match package["license"].as_str() {
            None => findings.push(Finding::new("Cargo.lock", 0, format!("{name} states no licence"))),
            Some(licence) if !is_permissive(licence) => {
                findings.push(Finding::new(
                    "Cargo.lock",
                    0,
                    format!("{name} has the licence {licence}, which is not permissive"),
                ));
            }
            Some(_) => {}
        }
        if package["source"]
            .as_str()
            .is_some_and(|source| !source.starts_with("registry+"))
        {
            findings.push(Finding::new(
                "Cargo.lock",
                0,
                format!("{name} does not come from the registry"),
            ));
        }
    }
    findings
}

/// Whether an SPDX expression lets one choose permissive licences only.
fn is_permissive(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut tokens = spaced.split_whitespace().peekable();
    let permissive = any_of(&mut tokens);
    // Something left over means that the expression was not understood.
    permissive && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(tokens: &mut Tokens<'_>) -> bool {
    let mut permissive = all_of(tokens);
    while tokens.next_if_eq(&"OR").is_some() {
        permissive |= all_of(tokens);
    }
    permissive
}

fn all_of(tokens: &mut Tokens<'_>) -> bool {
    let mut permissive = one(tokens);
    while tokens.next_if_eq(&"AND").is_some() {
        permissive &= one(tokens);
    }
    permissive
}

fn one(tokens: &mut Tokens<'_>) -> bool {
    match tokens.next() {
        Some("(") => {
            let permissive = any_of(tokens);
            permissive && tokens.next() == Some(")")
        }
        Some(licence) => {
            let exception = tokens.next_if_eq(&"WITH").and_then(|_| tokens.next());
            let full = exception.map_or_else(|| licence.to_owned(), |exception| format!("{licence} WITH {exception}"));
            PERMISSIVE.contains(&full.as_str())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_permissive_choice_is_enough_and_all_parts_have_to_be_permissive() {
        for good in [
            "MIT",
            "MIT OR GPL-2.0-only",
            "GPL-2.0-only OR MIT",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "MIT AND (GPL-3.0 OR ISC)",
        ] {
            assert!(is_permissive(good), "{good}");
        }
        for bad in [
            "GPL-2.0-only",
            "MIT AND GPL-2.0-only",
            "MPL-2.0",
            "Apache-2.0 WITH Other-exception",
            "GPL-3.0 OR LGPL-3.0",
            "(MIT OR Apache-2.0) AND MPL-2.0",
            "",
            "MIT MIT",
            "(MIT",
        ] {
            assert!(!is_permissive(bad), "{bad}");
        }
    }

    #[test]
    fn packages_without_licence_with_a_bad_one_or_from_elsewhere_are_found() {
        let check = |package: Value| check(&json!({ "packages": [package] })).len();
        assert_eq!(
            check(json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": "registry+x"})),
            0
        );
        assert_eq!(
            check(json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": null})),
            0
        );
        assert_eq!(
            check(json!({"name": "a", "version": "1.0.0", "license": null, "source": "registry+x"})),
            1
        );
        assert_eq!(
            check(json!({"name": "a", "version": "1.0.0", "license": "SSPL-1.0", "source": "registry+x"})),
            1
        );
        assert_eq!(
            check(json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": "git+x"})),
            1
        );
        assert_eq!(super::check(&json!({ "packages": [] })).len(), 1);
    }
}
