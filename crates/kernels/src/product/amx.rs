//! Intel's Advanced Matrix Extensions: TDPBF16PS over tiles of 16 rows of 64 bytes (Intel SDM vol. 2, "Intel AMX instruction set").
//!
//! Stable Rust has no intrinsics for AMX, so the instructions are written in assembly. The compiler knows the tile registers by name, never
//! uses them itself, and is told that they are lost. Tiles 0 to 3 hold the block's sums, 4 and 5 the left side, 6 and 7 the right side.

#![expect(
    unsafe_code,
    reason = "AMX has no intrinsics in stable Rust; Linux grants its state by a system call"
)]

#[cfg(all(test, target_os = "linux"))]
mod emulator;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use super::tile::{SIDE, Tile};
use super::unit::BLOCK;
use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// The 64 bytes of LDTILECFG: palette 1, eight tiles of 16 rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether the processor has tiles of bf16 and the operating system lets this process use them.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| is_x86_feature_detected!("avx512f") && has_tiles() && is_permitted())
}

/// CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE.
fn has_tiles() -> bool {
    const BITS: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

/// Linux gives tile data (XSAVE component 18) to a process that asks with `arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`; the threads that it starts
/// later and those that it has share the permission.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: this system call changes what the process may use and touches no memory; rcx and r11 are lost in every call.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Whether the instructions run here, in the processor or emulated.
#[cfg(test)]
pub(super) fn is_testable() -> bool {
    #[cfg(target_os = "linux")]
    return is_available() || emulator::install();
    #[cfg(not(target_os = "linux"))]
    false
}

/// Runs `body` with the tiles of this thread configured, and lets them go behind it.
pub(super) fn with_tiles<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: the unit was chosen because `is_available`; the configuration is valid, and no other code here uses tiles.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags));
    }
    let result = body();
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    result
}

/// A block of 32 x 32 to rows of `row_len` (16 or 32) elements; with 16 the second half of the columns is computed and dropped, and so are
/// the lower 16 rows where both left sides are one. To be called inside [`with_tiles`].
pub(super) fn multiply(left: [&[Tile]; 2], right: [&[Tile]; 2], row_len: usize, out: &mut [f32; BLOCK]) {
    let depth = left[0].len();
    assert!(left.iter().chain(&right).all(|tiles| tiles.len() == depth), "tiles of depth");
    let mut sums = Sums([0.0; 4 * SIDE * SIDE]);
    // SAFETY: inside `with_tiles`; each side has `depth` tiles and `sums` holds four.
    unsafe { block(left.map(<[Tile]>::as_ptr), right.map(<[Tile]>::as_ptr), depth, &mut sums) };
    for row in 0..2 * SIDE {
        let from = &sums.0[row * 2 * SIDE..][..row_len];
        out[row * row_len..][..row_len].copy_from_slice(from);
    }
}

/// 32 rows of 32 sums.
#[repr(C, align(64))]
struct Sums([f32; 4 * SIDE * SIDE]);

/// # Safety
/// The tiles are configured; each pointer leads to `depth` tiles.
unsafe fn block(left: [*const Tile; 2], right: [*const Tile; 2], depth: usize, sums: &mut Sums) {
    // SAFETY: by the caller's promise the loop reads 16 rows, 64 bytes apart, of each of `depth` tiles a side; the stores write 16 rows, 128
    // bytes apart, of the four quarters of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {depth}, {depth}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{l0} + {row} * 1]",
            "tileloadd tmm6, [{r0} + {row} * 1]",
            "tileloadd tmm7, [{r1} + {row} * 1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{l1} + {row} * 1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {l0}, 1024",
            "add {l1}, 1024",
            "add {r0}, 1024",
            "add {r1}, 1024",
            "dec {depth}",
            "jnz 2b",
            "3:",
            "tilestored [{sums} + {wide} * 1], tmm0",
            "tilestored [{sums} + {wide} * 1 + 64], tmm1",
            "tilestored [{sums} + {wide} * 1 + 2048], tmm2",
            "tilestored [{sums} + {wide} * 1 + 2112], tmm3",
            l0 = inout(reg) left[0] => _,
            l1 = inout(reg) left[1] => _,
            r0 = inout(reg) right[0] => _,
            r1 = inout(reg) right[1] => _,
            depth = inout(reg) depth => _,
            row = in(reg) 64usize,
            wide = in(reg) 128usize,
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
