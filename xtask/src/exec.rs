//! Runs other programs: says what it runs, and turns a bad exit into an error that names the command.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs `command` with the caller's input and outputs. A status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("  $ {}", describe(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs `command` quietly and returns what it wrote to standard output. A status other than 0 is an error that holds
/// what it wrote to standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", describe(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote no UTF-8", describe(command)))
}

/// The command line of `command`, for people to read (no quoting).
pub(crate) fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

/// The cargo that started xtask, run in `folder`.
pub(crate) fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    command
}

/// Finds an executable by name in `PATH` and in the folders of administrators' programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Tells whether this process runs with effective user id 0.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    effective_user(&status)
        .map(|user| user == 0)
        .context("/proc/self/status has no user id")
}

/// The second number of the `Uid:` line of proc(5)'s status file.
fn effective_user(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// A command that runs `program` as root with the additional environment `variables`: directly when this process is
/// root, else by sudo. `purpose` completes "root is needed to ...".
pub(crate) fn as_root(program: impl AsRef<OsStr>, variables: &[(&str, &OsStr)], purpose: &str) -> Result<Command> {
    if is_root()? {
        let mut command = Command::new(program);
        command.envs(variables.iter().copied());
        return Ok(command);
    }
    let Some(sudo) = find("sudo") else {
        bail!("root is needed to {purpose}, and there is no sudo")
    };
    let mut command = Command::new(sudo);
    // Given as arguments of env(1), the variables pass any sudoers policy on the environment.
    command.args(["-E", "env"]);
    for (name, value) in variables {
        let mut pair = std::ffi::OsString::from(name);
        pair.push("=");
        pair.push(value);
        command.arg(pair);
    }
    command.arg(program);
    Ok(command)
}

/// Writes `content` to `file` unless that is what it holds, so that time stamps change with the content only.
pub(crate) fn write_if_changed(file: &Path, content: &[u8]) -> Result<()> {
    if fs::read(file).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_exit_is_an_error_with_command_status_and_what_was_said() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("why"), "{error}");
        assert!(run(&mut Command::new("false")).is_err());
        assert!(
            run(&mut Command::new("/no/such/program"))
                .unwrap_err()
                .to_string()
                .contains("/no/such/program")
        );
    }

    #[test]
    fn output_is_standard_output_only() {
        assert_eq!(
            output(Command::new("sh").args(["-c", "echo out; echo err >&2"])).unwrap(),
            "out\n"
        );
    }

    #[test]
    fn the_effective_user_is_read_not_the_real_one() {
        assert_eq!(
            effective_user("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t6\t7\t8\n"),
            Some(0)
        );
        assert_eq!(effective_user("Name:\tx\n"), None);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn an_unchanged_file_keeps_its_time_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("object");
        write_if_changed(&file, b"one").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(old)
            .unwrap();
        write_if_changed(&file, b"one").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), old);
        write_if_changed(&file, b"two").unwrap();
        assert_ne!(fs::metadata(&file).unwrap().modified().unwrap(), old);
        assert_eq!(fs::read(&file).unwrap(), b"two");
    }
}
