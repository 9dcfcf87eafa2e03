//! How the kernels that a step spends its time in reach memory, counted in their machine code: 16 bytes at a time where
//! rows are whole, nothing in local memory, and on Hopper nothing before what the launch before wrote can be seen. No GPU
//! is needed.

use crate::nvrtc::{compiled, in_f16};
use clip_engine::tensor::DType;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

/// Instructions of one kernel, by what they do to memory. Copies into shared memory count as loads.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Accesses {
    /// Of 16 bytes.
    wide_loads: usize,
    wide_stores: usize,
    /// Of one value of 16 bits, or less.
    narrow_loads: usize,
    narrow_stores: usize,
    /// Loads and stores of local memory.
    local: usize,
    tensor_core: usize,
    /// Instructions that reach device memory, or that branch, before the kernel has waited for the launch before it.
    early: usize,
    waits: usize,
}

/// What a kernel must have: at least so many wide ones, at most so many narrow ones.
struct Hot {
    file: &'static str,
    kernel: &'static str,
    wide: [usize; 2],
    narrow: [usize; 2],
}

const fn hot(file: &'static str, kernel: &'static str, wide: [usize; 2], narrow: [usize; 2]) -> Hot {
    Hot { file, kernel, wide, narrow }
}

/// By file and kernel: wide loads and stores, narrow loads and stores. Narrow ones are a row's last values behind the
/// whole sixteen bytes, and columns of an adapter's narrow side.
const HOT: [Hot; 22] = [
    hot("activation", "activation_backward_quick_gelu", [4, 2], [2, 1]),
    hot("activation", "activation_bias_backward_quick_gelu", [9, 4], [0, 0]),
    hot("activation", "activation_bias_quick_gelu", [5, 4], [0, 0]),
    hot("activation", "activation_quick_gelu", [2, 2], [1, 1]),
    hot("adamw", "adamw_update", [12, 9], [0, 0]),
    hot("attention_mma_64", "attention_backward_mma_64", [60, 12], [0, 0]),
    hot("attention_mma_64", "attention_backward_mma_whole_64", [16, 12], [0, 0]),
    hot("attention_mma_64", "attention_mma_64", [20, 4], [0, 0]),
    hot("class_tail", "class_tail_backward", [77, 2], [1, 1]),
    hot("class_tail", "class_tail_forward", [99, 37], [2, 2]),
    hot("layer_norm", "layer_norm_768", [15, 3], [0, 0]),
    hot("layer_norm", "layer_norm_backward_768", [15, 6], [0, 0]),
    hot("layer_norm", "layer_norm_tokens_768", [27, 3], [0, 0]),
    hot("lora_fold", "lora_fold", [10, 8], [0, 0]),
    hot("lora_gradients", "lora_gradients", [24, 0], [32, 0]),
    hot("lora_gradients", "lora_gradients_start", [58, 0], [0, 24]),
    hot("lora_linear", "lora_linear_backward_start_32_rows", [32, 12], [64, 3]),
    hot("lora_linear", "lora_linear_gradients", [24, 0], [32, 0]),
    hot("lora_linear", "lora_linear_start_32_rows", [86, 24], [64, 7]),
    hot("lora_linear_fused", "lora_linear_backward_fused_128x128_r8", [36, 16], [0, 8]),
    hot("lora_linear_fused", "lora_linear_fused_128x128_r8", [54, 32], [0, 16]),
    hot("patch_embed", "patch_embed_pixels_wide", [15, 1], [29, 5]),
];

/// Kernels of HOT that multiply on tensor cores.
fn multiplies(kernel: &str) -> bool {
    kernel.contains("mma") || kernel.contains("fused") || kernel.contains("class_tail")
}

/// What each kernel of a cubin does, by name.
fn disassemble(cubin: &[u8]) -> BTreeMap<String, Accesses> {
    let file = tempfile::Builder::new().suffix(".cubin").tempfile().unwrap();
    std::fs::write(file.path(), cubin).unwrap();
    let program = option_env!("CLIP_ENGINE_NVDISASM").unwrap_or("nvdisasm");
    let output = Command::new(program).arg("--print-code").arg(file.path()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    counted(&String::from_utf8(output.stdout).unwrap())
}

/// Reads lines like `/*0040*/  @P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;` below `.section .text.KERNEL,…`.
fn counted(text: &str) -> BTreeMap<String, Accesses> {
    let mut kernels: BTreeMap<String, Accesses> = BTreeMap::new();
    let mut kernel = None;
    for line in text.lines() {
        if let Some(name) =
            line.trim_start().strip_prefix(".section").and_then(|l| l.trim().strip_prefix(".text."))
        {
            kernel = Some(name.split(',').next().unwrap().to_owned());
        }
        let Some((_, rest)) = line.split_once("*/").filter(|(start, _)| start.trim_start().starts_with("/*"))
        else {
            continue;
        };
        let Some(operation) = rest.split_whitespace().find(|word| !word.starts_with('@')) else { continue };
        let Some(kernel) = &kernel else { continue };
        let found = kernels.entry(kernel.clone()).or_default();
        let mut parts = operation.trim_end_matches(';').split('.');
        let name = parts.next().unwrap();
        let width = parts.fold(4, |width, part| match part {
            "128" => 16,
            "64" => 8,
            "U16" | "S16" => 2,
            "U8" | "S8" => 1,
            _ => width,
        });
        let reaches = [
            "LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "BRA", "BRX", "CALL", "EXIT",
        ];
        if found.waits == 0 && reaches.contains(&name) {
            found.early += 1;
        }
        let count = match (name, width) {
            ("ACQBULK", _) => &mut found.waits,
            ("LDL" | "STL", _) => &mut found.local,
            ("HMMA", _) => &mut found.tensor_core,
            ("LD" | "LDG" | "LDGSTS", 16) => &mut found.wide_loads,
            ("ST" | "STG", 16) => &mut found.wide_stores,
            ("LD" | "LDG", 1 | 2) => &mut found.narrow_loads,
            ("ST" | "STG", 1 | 2) => &mut found.narrow_stores,
            _ => continue,
        };
        *count += 1;
    }
    kernels
}

/// What is wrong with a kernel, in words.
fn problems(hot: &Hot, found: &Accesses) -> String {
    let mut text = String::new();
    let mut say = |what: &str, count: usize, limit: usize, enough: bool| {
        if !enough {
            write!(text, "\n{} {}: {count} {what}, {limit} expected", hot.file, hot.kernel).unwrap();
        }
    };
    let ([loads, stores], [narrow_loads, narrow_stores]) = (hot.wide, hot.narrow);
    say("wide loads", found.wide_loads, loads, found.wide_loads >= loads);
    say("wide stores", found.wide_stores, stores, found.wide_stores >= stores);
    say("narrow loads", found.narrow_loads, narrow_loads, found.narrow_loads <= narrow_loads);
    say("narrow stores", found.narrow_stores, narrow_stores, found.narrow_stores <= narrow_stores);
    say("accesses to local memory", found.local, 0, found.local == 0);
    if multiplies(hot.kernel) {
        say("products of tensor cores", found.tensor_core, 1, found.tensor_core > 0);
    }
    text
}

fn assert_wide(architecture: u32) {
    let mut wrong = String::new();
    println!("{:<38} {:>3} wide: loads, stores  narrow: loads, stores  tensor core", "kernel", "sm");
    for report in in_f16(architecture) {
        let mut of_file = HOT.iter().filter(|hot| hot.file == report.file).peekable();
        let kernels = if of_file.peek().is_some() { disassemble(&report.cubin) } else { BTreeMap::new() };
        for hot in of_file {
            let found = kernels.get(hot.kernel).unwrap_or_else(|| panic!("{}: not in the code", hot.kernel));
            println!(
                "{:<38} {architecture:>3} {:>11} {:>7} {:>14} {:>7} {:>12}",
                hot.kernel,
                found.wide_loads,
                found.wide_stores,
                found.narrow_loads,
                found.narrow_stores,
                found.tensor_core
            );
            wrong += &problems(hot, found);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
#[cfg_attr(not(all(nvrtc, nvdisasm)), ignore = "needs NVRTC and nvdisasm")]
fn hot_kernels_of_hopper_move_sixteen_bytes_at_a_time() {
    assert_wide(90);
}

#[test]
#[ignore = "long: Hopper stays"]
fn hot_kernels_of_ampere_move_sixteen_bytes_at_a_time() {
    assert_wide(80);
}

/// A launch that may begin before the one in front of it has ended reads nothing of it before its kernel has waited.
fn assert_all_wait(architecture: u32, dtype: DType) {
    let (mut wrong, mut kernels) = (String::new(), 0);
    for report in compiled(architecture, dtype) {
        for (kernel, found) in disassemble(&report.cubin) {
            kernels += 1;
            if found.waits != 1 || found.early > 0 {
                let Accesses { waits, early, .. } = found;
                writeln!(wrong, "{} {kernel}: {waits} waits, {early} instructions before", report.file)
                    .unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(kernels > 90, "{kernels}");
}

#[test]
#[cfg_attr(not(all(nvrtc, nvdisasm)), ignore = "needs NVRTC and nvdisasm")]
fn every_kernel_of_hopper_waits_before_it_reaches_device_memory() {
    assert_all_wait(90, DType::F16);
}

#[test]
#[ignore = "long: Hopper stays, in f16"]
fn every_kernel_waits_on_blackwell_and_in_other_types() {
    for (architecture, dtype) in [(90, DType::BF16), (90, DType::F32), (100, DType::F16), (120, DType::F16)] {
        assert_all_wait(architecture, dtype);
    }
}

#[test]
fn instructions_are_told_apart_by_name_and_width() {
    let text = "\t.section\t.text.copy,\"ax\",@progbits\n\
        copy:\n\
        \x20 /*0000*/                   PREEXIT ;\n\
        \x20 /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;\n\
        \x20 /*0010*/               @!P0 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;\n\
        \x20 /*0020*/               @P1 STG.E.128 desc[UR4][R2.64], R4 ;\n\
        \x20 /*0030*/                   LD.E.U16 R4, desc[UR4][R2.64] ;\n\
        \x20 /*0040*/                   STG.E.U8 desc[UR4][R2.64], R4 ;\n\
        \x20 /*0048*/                   ACQBULK ;\n\
        \x20 /*0050*/                   STG.E desc[UR4][R2.64], R4 ;\n\
        \x20 /*0060*/                   LDL.LU R4, [R1] ;\n\
        \x20 /*0070*/                   HMMA.16816.F32 R4, R4, R8, R4 ;\n\
        \x20 /*0080*/                   EXIT ;\n\
        \t.section\t.text.other,\"ax\",@progbits\n\
        \x20 /*0000*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;\n";
    let expected = [
        (
            "copy".to_owned(),
            Accesses {
                wide_loads: 2,
                wide_stores: 1,
                narrow_loads: 1,
                narrow_stores: 1,
                local: 1,
                tensor_core: 1,
                early: 5,
                waits: 1,
            },
        ),
        ("other".to_owned(), Accesses { narrow_loads: 1, early: 1, ..Accesses::default() }),
    ];
    assert_eq!(counted(text), BTreeMap::from(expected));
}
