//! `engine completions`

use super::common;
use anyhow::Result;
use clap::Command;
use clap_complete::Shell;

#[derive(clap::Args)]
pub struct Args {
    /// The shell that is to read the script.
    #[arg(value_name = "bash|zsh|fish|elvish|powershell", hide_possible_values = true)]
    shell: Shell,
}

pub fn run(args: Args, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "engine", &mut script);
    common::say(String::from_utf8(script)?.trim_end())
}
