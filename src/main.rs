//! The `engine` command.

fn main() -> std::process::ExitCode {
    clip_engine::command(std::env::args_os().collect()).into()
}
