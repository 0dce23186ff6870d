//! `overcommit completions` and `overcommit man-pages`

use crate::commands::Cli;
use crate::terminal::print;
use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit completions bash > /etc/bash_completion.d/overcommit
  overcommit completions zsh > /usr/local/share/zsh/site-functions/_overcommit")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Options of `man-pages`.
#[derive(Debug, clap::Args)]
pub struct ManPages {
    /// Folder for them
    dir: PathBuf,
}

/// Prints what makes a shell complete our options.
///
/// # Errors
/// It cannot be printed.
pub fn completions(args: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown(), "overcommit", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Our commands without those that are none of the user's: a shell would offer them.
fn shown() -> Command {
    let all = Cli::command();
    let commands = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("overcommit").subcommands(commands.collect::<Vec<_>>())
}

/// Writes a page for each subcommand.
///
/// # Errors
/// They cannot be written.
pub fn man_pages(args: &ManPages) -> Result<ExitCode> {
    let dir: &Path = &args.dir;
    let failed = || format!("cannot write man pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(failed)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_offers_what_is_for_users() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut shown(), "overcommit", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("slow-faults"), "{shell}");
            for hidden in Cli::command().get_subcommands().filter(|command| command.is_hide_set()) {
                assert!(!script.contains(hidden.get_name()), "{shell}: {}", hidden.get_name());
            }
        }
    }

    #[test]
    fn each_subcommand_has_a_page_and_no_hidden_one_has() {
        let dir = tempfile::tempdir().unwrap();
        man_pages(&ManPages { dir: dir.path().to_owned() }).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name));
        for command in Cli::command().get_subcommands() {
            let name = format!("overcommit-{}.1", command.get_name());
            assert_eq!(page(&name).is_ok(), !command.is_hide_set(), "{name}");
        }
        let record = page("overcommit-record.1").unwrap();
        assert!(record.contains("\\-\\-slow\\-faults") && !record.contains("\\-\\-without"));
    }
}
