//! The paths that a file names: those of its `use` declarations, written out in full, and those inside its code.

use super::source::Source;

/// A path and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// From 1.
    pub(super) line: usize,
    /// `a::b::c`, with `self` and `super` at its start replaced by the module that they mean.
    pub(super) path: String,
}

/// All paths outside test items.
pub(super) fn paths(source: &Source) -> Vec<Path> {
    let module = module(&source.file);
    let mut found = Vec::new();
    let mut lines = source.product();
    while let Some((line, code)) = lines.next() {
        let Some(start) = use_start(code) else {
            found.extend(code_paths(code).map(|path| Path {
                line,
                path: resolve(&path, &module),
            }));
            continue;
        };
        let mut tree = code[start..].to_owned();
        while !tree.contains(';') {
            let Some((_, more)) = lines.next() else { break };
            tree.push_str(more);
        }
        let tree = tree.split(';').next().unwrap_or_default();
        let mut leaves = Vec::new();
        expand("", tree, &mut leaves);
        found.extend(leaves.into_iter().map(|path| Path {
            line,
            path: resolve(&path, &module),
        }));
    }
    found
}

/// Where the tree of a `use` declaration starts on this line, whatever its visibility.
fn use_start(code: &str) -> Option<usize> {
    let at = if code.trim_start().starts_with("use ") {
        code.find("use ")?
    } else {
        code.find(" use ")? + 1
    };
    let before = code[..at].trim();
    (before.is_empty() || before == "pub" || before.starts_with("pub(") && before.ends_with(')')).then_some(at + 4)
}

/// Writes out `prefix::{tree}`.
fn expand(prefix: &str, tree: &str, leaves: &mut Vec<String>) {
    let tree = tree.trim();
    let join = |part: &str| {
        if prefix.is_empty() {
            part.to_owned()
        } else {
            format!("{prefix}::{part}")
        }
    };
    let Some(open) = tree.find('{') else {
        let path = tree
            .split(" as ")
            .next()
            .unwrap_or(tree)
            .trim()
            .trim_start_matches("::");
        if path == "self" && !prefix.is_empty() {
            leaves.push(prefix.to_owned());
        } else if !path.is_empty() {
            leaves.push(join(path));
        }
        return;
    };
    let stem = tree[..open]
        .trim()
        .trim_start_matches("::")
        .trim_end_matches("::")
        .trim();
    let prefix = if stem.is_empty() { prefix.to_owned() } else { join(stem) };
    let inside = tree[open + 1..].rsplit_once('}').map_or("", |(inside, _)| inside);
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                expand(&prefix, &inside[start..at], leaves);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&prefix, &inside[start..], leaves);
}

/// The paths of two names and more in a line of code.
fn code_paths(code: &str) -> impl Iterator<Item = String> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .map(|word| word.trim_matches(':'))
        .filter(|word| word.contains("::"))
        .map(str::to_owned)
}

/// The module that a file is, as a path from `crate`.
fn module(file: &str) -> Vec<String> {
    let inside = file.split_once("/src/").map_or(file, |(_, inside)| inside);
    let inside = inside.strip_suffix(".rs").unwrap_or(inside);
    let mut module = vec!["crate".to_owned()];
    module.extend(
        inside
            .split('/')
            .filter(|part| !["mod", "lib", "main"].contains(part))
            .map(str::to_owned),
    );
    module
}

/// Replaces `self` and `super` at the start of a path.
fn resolve(path: &str, module: &[String]) -> String {
    let mut depth = module.len();
    let mut rest: Vec<&str> = path.split("::").collect();
    let relative = matches!(rest.first(), Some(&("self" | "super")));
    while let Some(first) = rest.first() {
        match *first {
            "self" => {}
            "super" => depth = depth.saturating_sub(1),
            _ => break,
        }
        rest.remove(0);
    }
    let start = if relative { &module[..depth] } else { &[] };
    start
        .iter()
        .map(String::as_str)
        .chain(rest)
        .collect::<Vec<_>>()
        .join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        paths(&Source::new(file, text))
            .into_iter()
            .map(|path| path.path)
            .collect()
    }

    #[test]
    fn use_trees_are_written_out() {
        let text = "pub(crate) use crate::{\n    model::{self, Snapshot as S},\n    plan::*,\n};\nuse ::aya::maps;\n";
        let expected = ["crate::model", "crate::model::Snapshot", "crate::plan::*", "aya::maps"];
        assert_eq!(found("lb-userspace/src/reconcile.rs", text), expected);
    }

    #[test]
    fn relative_paths_are_resolved_from_the_files_module() {
        assert_eq!(
            found("lb-userspace/src/maps/bpf.rs", "use super::fake;\n"),
            ["crate::maps::fake"]
        );
        assert_eq!(
            found("lb-userspace/src/maps/mod.rs", "use super::model;\n"),
            ["crate::model"]
        );
        assert_eq!(
            found("lb-userspace/src/maps/bpf.rs", "use super::super::plan::Op;\n"),
            ["crate::plan::Op"]
        );
        assert_eq!(
            found("lb-userspace/src/health.rs", "use self::inner::X;\n"),
            ["crate::health::inner::X"]
        );
    }

    #[test]
    fn paths_inside_code_are_found_with_their_line() {
        let source = Source::new(
            "lb-userspace/src/flows.rs",
            "fn a() {\n    let x: Vec<aya::Ebpf> = crate::plan::all();\n}\n",
        );
        let expected = ["aya::Ebpf", "crate::plan::all"].map(|path| Path {
            line: 2,
            path: path.to_owned(),
        });
        assert_eq!(paths(&source), expected);
    }

    #[test]
    fn tests_comments_and_words_that_only_contain_use_are_left_out() {
        let text = "// use aya::x;\nfn reuse (a: u8) {}\n#[cfg(test)]\nmod tests {\n    use aya::x;\n}\n";
        assert_eq!(found("lb-userspace/src/flows.rs", text), Vec::<String>::new());
    }
}
