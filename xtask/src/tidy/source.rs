//! A Rust file as the rules see it: line by line, code apart from comments, the inside of literals blanked out.
//!
//! This is a scanner, no parser: it knows comments (nested), string, raw string, byte string and character literals
//! and lifetimes (the Rust Reference, chapters "Comments" and "Tokens"), and finds the extent of `#[cfg(test)]` items.

/// One file, scanned.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the checkout, with `/`.
    pub(crate) file: String,
    /// The lines as written.
    pub(crate) text: Vec<String>,
    /// The same lines with comments and the inside of literals replaced by spaces.
    pub(crate) code: Vec<String>,
    /// For each line, whether it belongs to an item that only tests see.
    pub(crate) test: Vec<bool>,
}

impl Source {
    /// Scans `text`.
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let code: Vec<String> = blank(text).lines().map(str::to_owned).collect();
        let whole_file = is_test_file(file);
        let mut test = vec![whole_file; code.len()];
        if !whole_file {
            mark_tests(&code, &mut test);
        }
        Self {
            file: file.to_owned(),
            text: text.lines().map(str::to_owned).collect(),
            code,
            test,
        }
    }

    /// The lines of code outside test items, with their numbers from 1.
    pub(crate) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .iter()
            .zip(&self.test)
            .enumerate()
            .filter(|(_, (_, test))| !**test)
            .map(|(at, (code, _))| (at + 1, code.as_str()))
    }
}

/// Whether a file holds nothing but tests: the package of tests, `tests.rs`, folders named tests.
fn is_test_file(file: &str) -> bool {
    file.split('/')
        .any(|part| part == "tests" || part == "tests.rs" || part == "benches")
}

/// Replaces comments and the inside of literals by spaces; line ends stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = if starts(&chars, at, "//") {
            find(&chars, at, |at| chars[at] == '\n')
        } else if starts(&chars, at, "/*") {
            block_comment_end(&chars, at)
        } else if let Some(hashes) = raw_string(&chars, at) {
            raw_string_end(&chars, at, hashes)
        } else if chars[at] == '"' {
            string_end(&chars, at)
        } else if chars[at] == '\'' {
            character_end(&chars, at)
        } else {
            out.push(chars[at]);
            at += 1;
            continue;
        };
        // The ends of a literal stay, so that it remains visible as one.
        let literal = chars[at] != '/';
        for (offset, &c) in chars[at..end].iter().enumerate() {
            let edge = literal && (offset == 0 || at + offset + 1 == end);
            out.push(if c == '\n' || edge { c } else { ' ' });
        }
        at = end;
    }
    out
}

fn starts(chars: &[char], at: usize, text: &str) -> bool {
    text.chars()
        .enumerate()
        .all(|(offset, c)| chars.get(at + offset) == Some(&c))
}

/// The first place from `at` on where `is_end` holds, or the end of the text.
fn find(chars: &[char], at: usize, is_end: impl Fn(usize) -> bool) -> usize {
    (at..chars.len()).find(|&at| is_end(at)).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < chars.len() {
        if starts(chars, at, "/*") {
            depth += 1;
            at += 2;
        } else if starts(chars, at, "*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The number of hashes if a raw string (`r"`, `br#"`, `cr##"`) starts here with its `r`.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map(|before| chars[before]);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let prefixed = matches!(before, Some('b' | 'c')) && !at.checked_sub(2).is_some_and(|at| is_word(chars[at]));
    if chars[at] != 'r' || before.is_some_and(is_word) && !prefixed {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_string_end(chars: &[char], at: usize, hashes: usize) -> usize {
    let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = at + hashes + 2;
    (find(chars, body, |at| starts(chars, at, &end)) + end.len()).min(chars.len())
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of a character literal, or of the quote alone if it starts a lifetime.
fn character_end(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), _) => (find(chars, start + 3, |at| chars[at] == '\'') + 1).min(chars.len()),
        (Some(_), Some('\'')) => start + 3,
        _ => start + 1,
    }
}

/// Marks the lines from each `#[cfg(test)]` to the end of the item that it stands on: a semicolon outside all brackets
/// or the brace that closes the outermost one.
fn mark_tests(code: &[String], test: &mut [bool]) {
    for start in 0..code.len() {
        let line = code[start].trim_start();
        if !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test") {
            continue;
        }
        let mut depth = 0_i32;
        for at in start..code.len() {
            test[at] = true;
            if ends_item(&code[at], &mut depth) {
                break;
            }
        }
    }
}

/// Whether an item that is `depth` brackets deep ends on this line.
fn ends_item(line: &str, depth: &mut i32) -> bool {
    for c in line.chars() {
        match c {
            '{' | '(' | '[' => *depth += 1,
            '}' | ')' | ']' => *depth -= 1,
            _ => {}
        }
        if *depth == 0 && matches!(c, '}' | ';') {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_the_inside_of_literals_are_blanked() {
        let cases = [
            ("a // unsafe", "a          "),
            ("a /* x /* y */ z */ b", "a                   b"),
            (r#"f("unsafe \" x", b)"#, r#"f("           ", b)"#),
            (r##"f(r#"a"b"#, c)"##, r"f(r      #, c)"),
            (r#"f(br"a", c)"#, r#"f(br  ", c)"#),
            ("let c = '\"'; x", "let c = ' '; x"),
            (r"let c = '\''; x", r"let c = '  '; x"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("for r in x", "for r in x"),
        ];
        for (text, expected) in cases {
            assert_eq!(blank(text), expected);
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "/* a\n b */ let x = \"c\nd\";\nlet y;\n";
        let source = Source::new("x/src/lib.rs", text);
        assert_eq!(source.code.len(), 4);
        assert_eq!(source.product().nth(3).unwrap(), (4, "let y;"));
    }

    #[test]
    fn test_items_are_marked_to_their_end_and_no_further() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}\n";
        let source = Source::new("x/src/lib.rs", text);
        let product: Vec<usize> = source.product().map(|(line, _)| line).collect();
        assert_eq!(product, [1, 6, 9]);
    }

    #[test]
    fn test_attributes_on_functions_and_between_attributes_are_understood() {
        let text = "#[cfg(test)]\n#[expect(x, reason = \"a;b\")]\nfn a(x: [u8; 3]) {\n}\nfn b() {}\n";
        let source = Source::new("x/src/lib.rs", text);
        assert_eq!(source.product().map(|(line, _)| line).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn the_package_of_tests_is_all_tests() {
        assert!(
            Source::new("tests/suite/main.rs", "mod a;\n")
                .product()
                .next()
                .is_none()
        );
        assert!(
            Source::new("lb-common/src/flow/tests.rs", "mod a;\n")
                .product()
                .next()
                .is_none()
        );
        assert!(
            Source::new("lb-common/src/tests_of_life.rs", "mod a;\n")
                .product()
                .next()
                .is_some()
        );
    }
}
