//! What people call and get: commands and their messages, run directories, pictures and pages.

mod command;
mod events;
#[path = "../data/files.rs"]
mod files;
mod server;

mod adapter_files;
mod balance;
mod bench_command;
mod check_command;
mod command_line;
mod compare_command;
mod dry_run;
mod export_command;
mod fetch;
#[cfg(target_os = "linux")]
mod gpu_report;
mod hub;
#[cfg(unix)]
mod kill_resume;
#[cfg(unix)]
mod ladder_runs;
mod launches;
mod logs;
mod models;
mod parts;
mod people;
mod predict;
mod report_page;
mod report_plots;
mod run_dir;
mod techniques_command;
#[cfg(target_os = "linux")]
mod twin_predict;
