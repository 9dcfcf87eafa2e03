//! Puts source lines and variables where the runtime wrote offsets, with the help of binutils.

use std::path::Path;
use std::process::Command;

/// The message with source lines for offsets in the library, "{1a2b}", and variables for offsets in static
/// shared memory, "{+1c}".
pub fn named(message: &str, library: &Path) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((offset, behind)) = after.split_once('}') else { break };
        text.push_str(before);
        text.push_str(&match offset.strip_prefix('+') {
            Some(offset) => shared_byte(offset, library).unwrap_or_else(|| format!("byte 0x{offset}")),
            None => {
                source_line(offset, library).unwrap_or_else(|| format!("offset 0x{offset} of its library"))
            }
        });
        rest = behind;
    }
    text + rest
}

/// "kernels/prelude.cuh:160 (from kernels/layer_norm.cu:31)": the line, and those it was inlined into. None
/// without binutils' addr2line.
fn source_line(offset: &str, library: &Path) -> Option<String> {
    let output =
        Command::new("addr2line").arg("-i").arg("-e").arg(library).arg(format!("0x{offset}")).output();
    let output = String::from_utf8(output.ok().filter(|o| o.status.success())?.stdout).ok()?;
    let lines = output.lines().map(|line| {
        let line = line.split(" (discriminator").next().unwrap_or(line);
        line.find("kernels/").map_or(line, |at| &line[at..])
    });
    let mut lines = lines.filter(|line| !line.contains("/twin/"));
    let first = lines.next().filter(|line| !line.starts_with("??"))?;
    let callers: Vec<&str> = lines.collect();
    Some(if callers.is_empty() { first.to_owned() } else { format!("{first} (from {})", callers.join(", ")) })
}

/// "byte 8 of row_sum(float const*)::scratch". None without binutils' readelf.
fn shared_byte(offset: &str, library: &Path) -> Option<String> {
    let offset = u64::from_str_radix(offset, 16).ok()?;
    let output =
        Command::new("readelf").arg("--symbols").arg("--wide").arg("--demangle").arg(library).output();
    let output = String::from_utf8(output.ok()?.stdout).ok()?;
    output.lines().find_map(|line| {
        // Number, value, size, type, binding, visibility, section, name.
        let mut columns = line.split_whitespace().skip(1);
        let start = u64::from_str_radix(columns.next()?, 16).ok()?;
        let size: u64 = columns.next()?.parse().ok()?;
        let inside = columns.next()? == "TLS" && (start..start + size).contains(&offset);
        let name = columns.skip(3).collect::<Vec<_>>().join(" ");
        inside.then(|| format!("byte {} of {name}", offset - start))
    })
}
