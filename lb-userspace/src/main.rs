//! The program `steerway`: hands arguments and streams to the library's command line and returns its exit status.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    steerway::heap::keep_small();
    steerway::cli::main(std::env::args_os(), &mut io::stdout().lock(), &mut io::stderr())
}
