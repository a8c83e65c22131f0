//! Rules on manifests: every version is written once, in the workspace's manifest, with the reason for the crate;
//! members only name it, and take the workspace's lints.

use super::Finding;

/// Checks one Cargo.toml.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    if file == "Cargo.toml" {
        check_workspace(file, text)
    } else {
        check_member(file, text)
    }
}

/// Each dependency of the workspace stands on one line and ends with the reason why it is there.
fn check_workspace(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut any = false;
    for (line, dependency) in entries(text)
        .filter(|(_, section, _)| *section == "workspace.dependencies")
        .map(|(line, _, entry)| (line, entry))
    {
        any = true;
        let reason = dependency.rsplit_once(" # ").map_or("", |(_, reason)| reason.trim());
        if reason.split_whitespace().count() < 2 {
            findings.push(Finding::new(
                file,
                line,
                "a dependency without the reason for it (`# ...` on its line)",
            ));
        }
        if dependency.contains("git = ") || dependency.contains('*') || !dependency.contains('"') {
            findings.push(Finding::new(file, line, "a dependency without a version of its own"));
        }
    }
    if !any {
        findings.push(Finding::new(file, 0, "no [workspace.dependencies]"));
    }
    findings
}

/// A member takes each dependency from the workspace or from a neighbour's folder, and the workspace's lints.
fn check_member(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut lints = false;
    for (line, section, entry) in entries(text) {
        if section == "lints" && entry == "workspace = true" {
            lints = true;
        }
        let is_dependency =
            section == "dependencies" || section.ends_with("-dependencies") || section.ends_with(".dependencies");
        let from_workspace = entry.contains("workspace = true") || entry.contains("path = \"../");
        if is_dependency && (!from_workspace || entry.contains("version = ")) {
            findings.push(Finding::new(
                file,
                line,
                "versions are written in the workspace's manifest: `name.workspace = true`",
            ));
        }
    }
    if !lints {
        findings.push(Finding::new(file, 0, "no `[lints] workspace = true`"));
    }
    findings
}

/// The entries of a manifest, each with its line (from 1) and its section.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut section = "";
    text.lines().enumerate().filter_map(move |(at, line)| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name;
            return None;
        }
        (!line.is_empty() && !line.starts_with('#')).then_some((at + 1, section, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(dependency: &str) -> usize {
        check(
            "Cargo.toml",
            &format!("[workspace.dependencies]\n{dependency}\n[profile.dev]\ndebug = 1\n"),
        )
        .len()
    }

    fn member(dependency: &str) -> usize {
        check(
            "xtask/Cargo.toml",
            &format!("[dependencies]\n{dependency}\n[lints]\nworkspace = true\n"),
        )
        .len()
    }

    #[test]
    fn a_dependency_of_the_workspace_has_a_version_and_a_reason() {
        assert_eq!(workspace("aya = \"0.14\" # loads programs"), 0);
        assert_eq!(workspace("aya = \"0.14\""), 1);
        assert_eq!(workspace("aya = \"0.14\" # aya"), 1);
        assert_eq!(workspace("aya = \"*\" # loads programs"), 1);
        assert_eq!(workspace("aya = { git = \"x\" } # loads programs"), 1);
        assert_eq!(check("Cargo.toml", "[workspace]\n").len(), 1);
    }

    #[test]
    fn a_member_takes_dependencies_and_lints_from_the_workspace() {
        assert_eq!(member("aya.workspace = true"), 0);
        assert_eq!(member("aya = { workspace = true, features = [\"x\"] }"), 0);
        assert_eq!(member("lb-common = { path = \"../lb-common\" }"), 0);
        assert_eq!(member("aya = \"0.14\""), 1);
        assert_eq!(member("aya = { version = \"0.14\" }"), 1);
        assert_eq!(check("xtask/Cargo.toml", "[package]\nname = \"xtask\"\n").len(), 1);
        let target = "[target.'cfg(loom)'.dependencies]\nloom = \"0.7\"\n[lints]\nworkspace = true\n";
        assert_eq!(check("lb-common/Cargo.toml", target).len(), 1);
    }
}
