//! The terminal: lines that stay, and below them on a terminal a frame that is drawn anew in place.
//!
//! While a frame is written, long lines are cut by the terminal (DECAWM off) instead of wrapped, so that its height is
//! known. When standard output is no terminal there are no frames and no escape sequences.

use std::io::{self, IsTerminal as _, Write as _};

const CUT_LINES: &str = "\x1b[?7l";
const WRAP_LINES: &str = "\x1b[?7h";
const RED: &str = "\x1b[1;31m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Standard output.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    /// Lines of the frame that is shown.
    height: usize,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            height: 0,
        }
    }

    /// Whether frames are shown.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints text that stays, in place of the frame.
    pub(crate) fn say(&mut self, text: &str) {
        let clear = self.clear();
        write(&format!("{clear}{text}\n"));
        self.height = 0;
    }

    /// Shows a frame in place of the last one.
    pub(crate) fn draw(&mut self, frame: &str) {
        if self.terminal {
            let clear = self.clear();
            write(&format!("{CUT_LINES}{clear}{frame}{WRAP_LINES}"));
            self.height = frame.matches('\n').count();
        }
    }

    /// Text that stands out.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.coloured(BOLD, text)
    }

    /// Text that tells of a failure.
    pub(crate) fn alarm(&self, text: &str) -> String {
        self.coloured(RED, text)
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        if self.terminal {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }

    fn clear(&self) -> String {
        match self.height {
            0 => String::new(),
            height => format!("\x1b[{height}A\r\x1b[J"),
        }
    }
}

fn write(text: &str) {
    // A terminal that is gone ends the show by other ways.
    let mut out = io::stdout().lock();
    _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
