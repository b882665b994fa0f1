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
use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// The 64 bytes of LDTILECFG. Palette 1 has eight tiles of at most 16 rows of 64 bytes; the rest of both tables is reserved and zero.
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
    *AVAILABLE.get_or_init(|| has_tiles() && is_permitted())
}

/// Whether the processor runs the instructions: it has them (CPUID leaf 7, EDX bit 22 AMX-BF16, bit 24 AMX-TILE) and the operating system
/// keeps the state (CPUID leaf 1, ECX bit 27 OSXSAVE; XCR0 bit 17 the configuration, bit 18 the data).
fn has_tiles() -> bool {
    const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    const CONFIGURATION_AND_DATA: u64 = 1 << 17 | 1 << 18;
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE
        && __cpuid(1).ecx & OSXSAVE != 0
        // SAFETY: OSXSAVE says that XGETBV may be used.
        && unsafe { _xgetbv(0) } & CONFIGURATION_AND_DATA == CONFIGURATION_AND_DATA
}

/// Linux (5.16) gives tile data (XSAVE component 18) to a process that asks with `arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`. The permission is the
/// process's: threads that run already have it too. A thread gets the memory for its tiles at the first use.
///
/// It is refused with ENOSPC while any thread has an alternate signal stack that a frame with tiles (11 KiB) would not fit in. The standard
/// library makes those of its threads as large as the kernel says (AT_MINSIGSTKSZ, which counts tiles), so only somebody else's stack can
/// be too small. That, like an older kernel, leaves the next best unit.
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

/// Runs `body` with the tiles of this thread configured, and lets them go behind it: a thread with tiles in use is dearer to switch. Not to
/// be nested, for the inner end would take them from the outer body.
pub(super) fn with_tiles<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: the unit was chosen because `is_available`; the configuration is valid, and no other code here uses tiles.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags));
    }
    let _release = Release;
    body()
}

/// Lets the tiles go when it is dropped, after a panic too.
struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        // SAFETY: made where the tiles were configured.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// A block of 32 x 32 to rows of `row_len` (16 or 32) elements at the start of `out`; with 16 the second half of the columns is computed and
/// left behind the first, and the lower 16 rows are worth nothing where both left sides are one. To be called inside [`with_tiles`].
pub(super) fn multiply(left: [&[Tile]; 2], right: [&[Tile]; 2], row_len: usize, out: &mut [f32; BLOCK]) {
    const QUARTER: usize = SIDE * SIDE;
    const { assert!(4 * QUARTER <= BLOCK) };
    let depth = left[0].len();
    assert!(left.iter().chain(&right).all(|tiles| tiles.len() == depth), "tiles of depth");
    assert!([SIDE, 2 * SIDE].contains(&row_len), "rows of {row_len}");
    let next = if row_len == SIDE { 2 * QUARTER } else { SIDE };
    let lower = SIDE * row_len;
    let quarters = [0, next, lower, lower + next].map(|at| out.as_mut_ptr().wrapping_add(at));
    // SAFETY: inside `with_tiles`; each side has `depth` tiles. The last row of the last quarter ends at element 1024 for both lengths of a
    // row: one quarter behind the other, or rows of two.
    unsafe { block(left.map(<[Tile]>::as_ptr), right.map(<[Tile]>::as_ptr), depth, quarters, row_len) };
}

/// Two times two tiles of sums to `quarters`, whose rows are `row_len` elements apart.
///
/// In cycles of Sapphire Rapids (Intel's optimisation manual, chapter on AMX), not measured here: a step has four products of 16 with a latency
/// of 52, so that each waits for its own sums of 64 cycles ago and no longer, and four loads that keep both load ports for 8. From L1 the
/// loads take half the time of the products, and running out of order hides them in whatever order they stand. From L2 a step wants
/// 4 KiB in 64 cycles, more than the 48 bytes a cycle that come: strips that outgrow L1 (more than 10 tiles deep) end near three quarters
/// of the peak. A load for each product is the least that eight tiles allow. Prefetching by instructions would be 64 more loads a step on
/// the same ports for lines that lie in a row, which the hardware foresees (<https://github.com/usstq/mm_amx> measured the three quarters,
/// and that such prefetching costs more than it brings).
///
/// # Safety
/// The tiles are configured; each pointer of a side leads to `depth` tiles, each of `quarters` to 16 rows of 16 sums.
unsafe fn block(
    left: [*const Tile; 2],
    right: [*const Tile; 2],
    depth: usize,
    quarters: [*mut f32; 4],
    row_len: usize,
) {
    // SAFETY: by the caller's promise the loop reads 16 rows, 64 bytes apart, of each of `depth` tiles a side; the stores write the quarters.
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
            "tilestored [{q0} + {wide} * 4], tmm0",
            "tilestored [{q1} + {wide} * 4], tmm1",
            "tilestored [{q2} + {wide} * 4], tmm2",
            "tilestored [{q3} + {wide} * 4], tmm3",
            l0 = inout(reg) left[0] => _,
            l1 = inout(reg) left[1] => _,
            r0 = inout(reg) right[0] => _,
            r1 = inout(reg) right[1] => _,
            depth = inout(reg) depth => _,
            row = in(reg) 64usize,
            q0 = in(reg) quarters[0],
            q1 = in(reg) quarters[1],
            q2 = in(reg) quarters[2],
            q3 = in(reg) quarters[3],
            wide = in(reg) row_len,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
