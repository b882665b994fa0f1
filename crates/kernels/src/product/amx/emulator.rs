//! The tile instructions of the product in software, for tests on machines without AMX: a handler of SIGILL reads the instruction that the
//! processor refused, carries it out on tiles that each thread has for itself, and goes on behind it.
//!
//! Encodings and operations follow the Intel SDM vol. 2: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and TDPBF16PS, written
//! with the three bytes of VEX. What the SDM forbids, here and in any other instruction, ends the process with SIGILL as it would without
//! the handler (the processor raises #GP for a bad configuration). Simplified:
//!
//! - TDPBF16PS multiplies and adds where the SDM has a fused multiply-add. A product of two bf16 has 16 significant bits, so the result
//!   differs only where a product leaves the normal range of `f32`.
//! - A result is flushed to zero by its size after rounding; which NaN comes out is not specified.
//! - `start_row` is zero: nothing interrupts an emulated load.
//!
//! The handler allocates nothing, takes no lock and is not entered twice by a thread, for SIGILL is blocked while it runs.

use crate::product::tile::SIDE;
use core::cell::UnsafeCell;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use libc::{REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI, REG_RSP};
use std::sync::OnceLock;

/// Why an instruction is left to the processor.
type Fault = &'static str;

/// Tiles of palette 1.
const TILES: usize = 8;
const MAX_ROWS: usize = SIDE;
const MAX_BYTES_PER_ROW: usize = 4 * SIDE;

/// Sends the instructions that the processor refuses here. Whether they are emulated from now on: a processor that has them refuses nothing.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| !super::has_tiles() && set_handler())
}

fn set_handler() -> bool {
    // SAFETY: a zeroed `sigaction` is one without flags and with an empty mask; the handler has the signature that SA_SIGINFO asks for. It
    // runs on the stack of the thread, below its red zone, not on the small alternate one.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGILL, &raw const action, core::ptr::null_mut()) == 0
    }
}

/// How many instructions of each kind, in the order of [`Operation`], this thread has had emulated.
pub(super) fn counts() -> [usize; 6] {
    // SAFETY: the handler writes between two instructions of this thread, never during this read.
    TILE_UNIT.with(|unit| unsafe { (&raw const (*unit.get()).counts).read_volatile() })
}

thread_local! {
    /// Without a destructor and known at compile time: reading it is an address and nothing else.
    static TILE_UNIT: UnsafeCell<TileUnit> = const { UnsafeCell::new(TileUnit::NEW) };
}

/// Registers in the order of their numbers in an instruction.
const NUMBERED: [i32; 16] = [
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
    REG_R12, REG_R13, REG_R14, REG_R15,
];

extern "C" fn handle(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the registers of the interrupted thread.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[REG_RIP as usize] as usize;
    let mut end = at;
    let next = || {
        // SAFETY: the processor read these bytes as an instruction; no more of them are read than it has.
        let byte = unsafe { *with_exposed_provenance::<u8>(end) };
        end += 1;
        byte
    };
    let outcome = decode(next).and_then(|instruction| {
        let numbered = NUMBERED.map(|register| registers[register as usize] as usize);
        // SAFETY: the handler alone touches the unit of its thread while it runs; the program asks for this access to its memory.
        TILE_UNIT.with(|unit| unsafe { (*unit.get()).execute(&instruction, &numbered, end) })
    });
    match outcome {
        Ok(()) => registers[REG_RIP as usize] = end as i64,
        // SAFETY: both calls are async-signal-safe. The instruction runs again, and its second signal is fatal.
        Err(fault) => unsafe {
            libc::write(2, fault.as_ptr().cast(), fault.len());
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    LoadConfig,
    Release,
    Zero,
    Load,
    Store,
    AddProducts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) operation: Operation,
    /// ModRM.reg: the tile that is written, or stored.
    pub(super) reg: usize,
    /// ModRM.rm where it is a tile: the left side of a product.
    pub(super) rm: usize,
    /// VEX.vvvv: the right side of a product.
    pub(super) vvvv: usize,
    pub(super) address: Address,
}

/// `base + displacement`, and an index that is added once to the address of a configuration and row times to that of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) base: Option<usize>,
    pub(super) index: Option<usize>,
    /// The index counts 1, 2, 4 or 8 bytes.
    pub(super) scale: usize,
    pub(super) displacement: isize,
    /// Relative to the end of the instruction.
    pub(super) after_instruction: bool,
}

/// Reads one instruction, byte by byte from `next`.
pub(super) fn decode(mut next: impl FnMut() -> u8) -> Result<Instruction, Fault> {
    if next() != 0xc4 {
        return Err("not a VEX instruction of three bytes\n");
    }
    // R, X and B are written inverted, as vvvv is.
    let first = !next();
    let (r, x, b) = (first >> 7 & 1, first >> 6 & 1, first >> 5 & 1);
    let second = next();
    let vvvv = usize::from(!second >> 3 & 0xf);
    let (prefix, long_or_wide) = (second & 3, second & 0x84 != 0);
    let opcode = next();
    if !first & 0x1f != 2 || long_or_wide {
        return Err("not an instruction of VEX.128.0F38.W0\n");
    }
    let modrm = next();
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let registers = mode == 3;
    // Prefixes: 0 none, 2 F3, 3 F2.
    let operation = match (prefix, opcode) {
        (0, 0x49) if modrm == 0xc0 => Operation::Release,
        (0, 0x49) if !registers && reg == 0 => Operation::LoadConfig,
        (3, 0x49) if registers && rm == 0 => Operation::Zero,
        (3, 0x4b) if !registers && rm == 4 => Operation::Load,
        (2, 0x4b) if !registers && rm == 4 => Operation::Store,
        (2, 0x5c) if registers => Operation::AddProducts,
        _ => return Err("not an emulated tile instruction\n"),
    };
    if operation != Operation::AddProducts && vvvv != 0 {
        return Err("an operand too many in a tile instruction\n");
    }
    if r != 0 || vvvv >= TILES || registers && (b != 0 || x != 0) {
        return Err("no such tile\n");
    }
    let address = if registers { Address::default() } else { address(mode, rm, x, b, next) };
    Ok(Instruction { operation, reg: usize::from(reg), rm: usize::from(rm), vvvv, address })
}

/// The operand in memory: an optional SIB, then a displacement (SDM vol. 2, tables 2-2 and 2-3).
fn address(mode: u8, rm: u8, x: u8, b: u8, mut next: impl FnMut() -> u8) -> Address {
    let numbered = |high: u8, low: u8| usize::from(high << 3 | low);
    let mut address = Address::default();
    let mut low = rm;
    if rm == 4 {
        let sib = next();
        let index = numbered(x, sib >> 3 & 7);
        low = sib & 7;
        // The number of the stack pointer means that there is no index; with X it is r12.
        address.index = (index != 4).then_some(index);
        address.scale = 1 << (sib >> 6);
    }
    // Without a displacement the numbers of rbp and r13 stand for none of them: 32 bits, relative where there is no SIB.
    let bare = mode == 0 && low == 5;
    address.base = (!bare).then_some(numbered(b, low));
    address.after_instruction = bare && rm == 5;
    address.displacement = match mode {
        1 => (next() as i8).into(),
        2 => i32::from_le_bytes([next(), next(), next(), next()]) as isize,
        _ if bare => i32::from_le_bytes([next(), next(), next(), next()]) as isize,
        _ => 0,
    };
    address
}

impl Address {
    /// Where the operand starts, without the index.
    fn start(&self, registers: &[usize; 16], end: usize) -> usize {
        let base = match self.base {
            Some(base) => registers[base],
            None if self.after_instruction => end,
            None => 0,
        };
        base.wrapping_add_signed(self.displacement)
    }

    /// The index, scaled: bytes from a row to the next.
    fn stride(&self, registers: &[usize; 16]) -> usize {
        self.index.map_or(0, |index| registers[index].wrapping_mul(self.scale))
    }
}

/// The state of a thread.
pub(super) struct TileUnit {
    configured: bool,
    /// Rows and bytes per row of each tile; zero for a tile that may not be used.
    shapes: [(usize, usize); TILES],
    /// Rows of 16 words. What is outside the shape is zero.
    tiles: [[u32; MAX_ROWS * SIDE]; TILES],
    counts: [usize; 6],
}

impl TileUnit {
    pub(super) const NEW: Self = Self {
        configured: false,
        shapes: [(0, 0); TILES],
        tiles: [[0; MAX_ROWS * SIDE]; TILES],
        counts: [0; 6],
    };

    /// # Safety
    /// What the instruction reads or writes in memory is the program's to read or write.
    unsafe fn execute(
        &mut self,
        instruction: &Instruction,
        registers: &[usize; 16],
        end: usize,
    ) -> Result<(), Fault> {
        let Instruction { operation, reg, rm, vvvv, address } = *instruction;
        let (start, stride) = (address.start(registers, end), address.stride(registers));
        match operation {
            Operation::LoadConfig => {
                let at = with_exposed_provenance::<[u8; 64]>(start.wrapping_add(stride));
                // SAFETY: by the caller's promise.
                let config = unsafe { at.read_unaligned() };
                self.configure(&config)?;
            }
            Operation::Release => self.release(),
            Operation::Zero => {
                self.shape(reg)?;
                self.tiles[reg].fill(0);
            }
            Operation::Load => {
                let shape = self.shape(reg)?;
                // SAFETY: by the caller's promise.
                self.tiles[reg] = unsafe { load(shape, start, stride) };
            }
            Operation::Store => {
                // SAFETY: by the caller's promise.
                unsafe { store(&self.tiles[reg], self.shape(reg)?, start, stride) };
            }
            Operation::AddProducts => self.add_products(reg, rm, vvvv)?,
        }
        self.counts[operation as usize] += 1;
        Ok(())
    }

    fn release(&mut self) {
        *self = Self { counts: self.counts, ..Self::NEW };
    }

    /// LDTILECFG: palette and `start_row`, 14 reserved bytes, 16 times bytes per row in two bytes, 16 times rows in one.
    pub(super) fn configure(&mut self, config: &[u8; 64]) -> Result<(), Fault> {
        let (palette, start_row) = (config[0], config[1]);
        if palette > 1 || start_row != 0 {
            return Err("#GP: LDTILECFG of another palette or start row\n");
        }
        let shape = |tile: usize| {
            let bytes = u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]);
            (usize::from(config[48 + tile]), usize::from(bytes))
        };
        if config[2..16].iter().any(|byte| *byte != 0) || (TILES..16).any(|tile| shape(tile) != (0, 0)) {
            return Err("#GP: LDTILECFG with reserved bytes set\n");
        }
        let mut new = Self { configured: palette == 1, counts: self.counts, ..Self::NEW };
        for (tile, new) in new.shapes.iter_mut().enumerate().filter(|_| palette == 1) {
            *new = shape(tile);
            let (rows, bytes) = *new;
            if rows > MAX_ROWS || bytes > MAX_BYTES_PER_ROW || (rows == 0) != (bytes == 0) {
                return Err("#GP: LDTILECFG of a tile that the palette has not\n");
            }
        }
        *self = new;
        Ok(())
    }

    fn shape(&self, tile: usize) -> Result<(usize, usize), Fault> {
        match self.shapes[tile] {
            _ if !self.configured => Err("#UD: tiles are not configured\n"),
            (0, 0) => Err("#UD: this tile is not configured\n"),
            shape => Ok(shape),
        }
    }

    /// TDPBF16PS: `sums [m, n] += left [m, k] right [k, n]`, k and n in words, each a pair of bf16 in the sides. The first and the second
    /// numbers of the pairs have a sum each from zero; both sums are added, then added to what was there.
    pub(super) fn add_products(&mut self, sums: usize, left: usize, right: usize) -> Result<(), Fault> {
        if sums == left || sums == right || left == right {
            return Err("#UD: TDPBF16PS with a tile twice\n");
        }
        let ((m, bytes), (left_rows, left_bytes), (right_rows, right_bytes)) =
            (self.shape(sums)?, self.shape(left)?, self.shape(right)?);
        let whole = [bytes, left_bytes, right_bytes].iter().all(|bytes| bytes % 4 == 0);
        if !whole || left_rows != m || right_bytes != bytes || left_bytes != 4 * right_rows {
            return Err("#UD: TDPBF16PS of shapes that do not fit\n");
        }
        let (k, n) = (right_rows, bytes / 4);
        let right = [0, 1].map(|half| self.tiles[right].map(|pair| number(pair, half)));
        for row in 0..m {
            let mut pairs = [[0.0f32; SIDE]; 2];
            for (half, sums) in pairs.iter_mut().enumerate() {
                let left = self.tiles[left][row * SIDE..][..k].iter().map(|pair| number(*pair, half));
                for (left, right) in left.zip(right[half].as_chunks::<SIDE>().0) {
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = flushed(*sum + left * right);
                    }
                }
            }
            for (column, sum) in self.tiles[sums][row * SIDE..][..n].iter_mut().enumerate() {
                let products = flushed(pairs[0][column] + pairs[1][column]);
                *sum = flushed(flushed(f32::from_bits(*sum)) + products).to_bits();
            }
        }
        Ok(())
    }
}

/// The lower (0) or the upper (1) number of a pair.
fn number(pair: u32, half: usize) -> f32 {
    flushed(f32::from_bits(if half == 0 { pair << 16 } else { pair & 0xffff_0000 }))
}

/// Zero of the same sign for what is below the normal numbers.
fn flushed(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// # Safety
/// The rows may be read.
unsafe fn load((rows, bytes): (usize, usize), start: usize, stride: usize) -> [u32; MAX_ROWS * SIDE] {
    let mut tile = [0; MAX_ROWS * SIDE];
    for (row, words) in tile.chunks_exact_mut(SIDE).enumerate().take(rows) {
        let from = with_exposed_provenance::<u8>(start.wrapping_add(row.wrapping_mul(stride)));
        // SAFETY: by the caller's promise; a row has at most 64 bytes.
        unsafe { from.copy_to_nonoverlapping(words.as_mut_ptr().cast(), bytes) };
    }
    tile
}

/// # Safety
/// The rows may be written.
unsafe fn store(tile: &[u32; MAX_ROWS * SIDE], (rows, bytes): (usize, usize), start: usize, stride: usize) {
    for (row, words) in tile.chunks_exact(SIDE).enumerate().take(rows) {
        let to = with_exposed_provenance_mut::<u8>(start.wrapping_add(row.wrapping_mul(stride)));
        // SAFETY: by the caller's promise; a row has at most 64 bytes.
        unsafe { to.copy_from_nonoverlapping(words.as_ptr().cast(), bytes) };
    }
}
