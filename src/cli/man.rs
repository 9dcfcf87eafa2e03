//! `engine man`

use super::common;
use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Write engine.1 and a page for every command here, instead of all pages to standard output.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args, command: Command) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    // Gives every command its own name and the flags that all of them take.
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    let Some(dir) = args.out else {
        let texts: Vec<&str> = pages.iter().map(|(_, text)| text.trim_end()).collect();
        return common::say(texts.join("\n"));
    };
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("--out: the folder {} cannot be made; choose another", dir.display()))?;
    for (name, text) in &pages {
        common::write_file(&dir.join(name), text.as_bytes())?;
    }
    common::say(format!("{} pages in {}", pages.len(), dir.display()))
}

/// File names and contents of the pages of `command` and all below it.
fn collect(command: &Command, pages: &mut Vec<(String, String)>) -> Result<()> {
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    pages.push((page.get_filename(), String::from_utf8(text)?));
    command.get_subcommands().filter(|below| !below.is_hide_set()).try_for_each(|below| collect(below, pages))
}
