//! The kernel against plain loops, and the emulator against the assembler and the SDM. Where there is AMX the processor runs the same tests.

use super::emulator::{Address, Instruction, Operation, TileUnit, counts, decode, install};
use super::*;
use crate::testing::Dice;
use half::bf16;
use std::os::unix::process::ExitStatusExt;
use std::sync::Barrier;

/// Tiles of small whole numbers, whose products have the same sum in any order.
fn whole_tiles(count: usize, stream: u64) -> Vec<Tile> {
    let mut dice = Dice::new(stream);
    let mut number = || u32::from(bf16::from_f32(dice.between(0, 16) as f32 - 8.0).to_bits());
    (0..count).map(|_| Tile(core::array::from_fn(|_| number() | number() << 16))).collect()
}

/// The numbers of the pair in row `row` and column `column`.
fn pair_at(tile: &Tile, row: usize, column: usize) -> [f32; 2] {
    let word = tile.0[row * SIDE + column];
    [word, word >> 16].map(|half| bf16::from_bits(half as u16).to_f32())
}

/// Element (row, column) of 16 rows of `left` times 16 columns of `right`.
fn product_at(left: &[Tile], right: &[Tile], row: usize, column: usize) -> f32 {
    let mut sum = 0.0;
    for (left, right) in left.iter().zip(right) {
        for k in 0..SIDE {
            let (a, b) = (pair_at(left, row, k), pair_at(right, k, column));
            sum += a[0] * b[0] + a[1] * b[1];
        }
    }
    sum
}

fn assert_block(left: [&[Tile]; 2], right: [&[Tile]; 2], row_len: usize) {
    let mut out = [f32::NAN; BLOCK];
    with_tiles(|| multiply(left, right, row_len, &mut out));
    assert!(out[4 * SIDE * SIDE..].iter().all(|sum| sum.is_nan()), "written behind the quarters");
    for row in 0..2 * SIDE {
        for column in 0..row_len {
            let want = product_at(left[row / SIDE], right[column / SIDE], row % SIDE, column % SIDE);
            let depth = left[0].len();
            assert_eq!(out[row * row_len + column], want, "depth {depth}: row {row} of {row_len}, {column}");
        }
    }
}

#[test]
fn blocks_equal_a_plain_loop() {
    assert!(is_testable());
    for depth in [0, 1, 2, 3, 7] {
        let [a, b, c, d] = [1, 2, 3, 4].map(|stream| whole_tiles(depth, stream));
        for row_len in [SIDE, 2 * SIDE] {
            assert_block([&a, &b], [&c, &d], row_len);
            // An edge gives the same tiles twice.
            assert_block([&a, &a], [&c, &d], row_len);
            assert_block([&a, &b], [&c, &c], row_len);
            assert_block([&a, &a], [&c, &c], row_len);
        }
    }
}

#[test]
fn a_block_takes_the_instructions_that_it_should() {
    if !install() {
        return;
    }
    for depth in [0, 1, 3] {
        let [a, b, c, d] = [1, 2, 3, 4].map(|stream| whole_tiles(depth, stream));
        let before = counts();
        assert_block([&a, &b], [&c, &d], 2 * SIDE);
        let done: [usize; 6] = core::array::from_fn(|i| counts()[i] - before[i]);
        assert_eq!(done, [1, 1, 4, 4 * depth, 4, 4 * depth], "depth {depth}");
    }
}

#[test]
fn a_panic_lets_the_tiles_go() {
    if !install() {
        return;
    }
    let before = counts();
    std::panic::catch_unwind(|| with_tiles(|| std::panic::resume_unwind(Box::new(())))).unwrap_err();
    let release = Operation::Release as usize;
    assert_eq!(counts()[release], before[release] + 1);
}

#[test]
fn tiles_of_another_thread_stay_as_they_are() {
    assert!(is_testable());
    let mine = whole_tiles(1, 1);
    let mut back = Tile::ZERO;
    let turn = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let [a, b] = [5, 6].map(|stream| whole_tiles(3, stream));
            turn.wait();
            assert_block([&a, &b], [&b, &a], 2 * SIDE);
            turn.wait();
        });
        with_tiles(|| {
            // SAFETY: the tiles are configured, and a tile is read and written.
            unsafe { asm!("tileloadd tmm0, [{} + {}]", in(reg) &mine[0], in(reg) 64usize, out("tmm0") _) };
            turn.wait();
            turn.wait();
            // SAFETY: as above.
            unsafe { asm!("tilestored [{} + {}], tmm0", in(reg) &raw mut back, in(reg) 64usize) };
        });
    });
    assert_eq!(back.0, mine[0].0);
}

/// Copies a tile between `from` and `to`, both with rows of `STRIDE` bytes, by one form of address, which it returns.
macro_rules! copy_by {
    ($from:expr, $to:expr, $base:tt, $index:tt, $scale:literal, $displacement:literal) => {{
        let before = |at: *const u8| at.wrapping_offset(-($displacement));
        // SAFETY: the tiles are configured, and both sides hold 16 rows.
        unsafe {
            asm!(
                concat!("tileloadd tmm7, [", $base, "+", $index, "*", $scale, "+", $displacement, "]"),
                in($base) before($from.as_ptr()), in($index) STRIDE / $scale, out("tmm7") _,
            );
            asm!(
                concat!("tilestored [", $base, "+", $index, "*", $scale, "+", $displacement, "], tmm7"),
                in($base) before($to.as_mut_ptr()), in($index) STRIDE / $scale,
            );
        }
        concat!("[", $base, "+", $index, "*", $scale, "+", $displacement, "]")
    }};
}

/// Bytes from a row to the next where addresses are tested.
const STRIDE: usize = 80;

#[test]
fn any_address_is_understood() {
    assert!(is_testable());
    let from: Vec<u8> = (0..STRIDE * SIDE).map(|i| (i * 7 % 251) as u8).collect();
    let check = |copy: &dyn Fn(&mut [u8]) -> &'static str| {
        let mut to = vec![0xffu8; STRIDE * SIDE];
        let form = with_tiles(|| copy(&mut to));
        for (row, (to, from)) in to.chunks_exact(STRIDE).zip(from.chunks_exact(STRIDE)).enumerate() {
            assert_eq!(to[..64], from[..64], "{form} row {row}");
            assert!(to[64..].iter().all(|byte| *byte == 0xff), "{form} writes behind row {row}");
        }
    };
    check(&|to| copy_by!(from, to, "rax", "rcx", 1, 0));
    check(&|to| copy_by!(from, to, "rdi", "r8", 1, 0));
    check(&|to| copy_by!(from, to, "r8", "rdx", 2, 1));
    check(&|to| copy_by!(from, to, "r12", "rsi", 4, 127));
    check(&|to| copy_by!(from, to, "r12", "r13", 4, -128));
    check(&|to| copy_by!(from, to, "r13", "r12", 8, 0));
    check(&|to| copy_by!(from, to, "r13", "r9", 1, 128));
    check(&|to| copy_by!(from, to, "r15", "r14", 8, -70000));
}

#[test]
fn without_an_index_all_rows_are_the_first() {
    assert!(is_testable());
    let tile = &whole_tiles(1, 1)[0];
    let mut back = Tile::ZERO;
    with_tiles(|| {
        // SAFETY: the tiles are configured, and 16 rows are written.
        unsafe {
            asm!("tileloadd tmm2, [r12]", in("r12") tile, out("tmm2") _);
            asm!("tilestored [{} + {} * 2], tmm2", in(reg) &raw mut back, in(reg) 32usize);
        }
    });
    assert!(back.0.chunks_exact(SIDE).all(|row| *row == tile.0[..SIDE]));
}

/// Tiles 0 [3, 20 bytes], 1 [3, 16 bytes] and 2 [4, 20 bytes]: a product of 3 x 5 over 4 pairs.
fn small_config() -> Config {
    let mut config = Config { bytes_per_row: [0; 16], rows: [0; 16], ..CONFIG };
    config.bytes_per_row[..3].copy_from_slice(&[20, 16, 20]);
    config.rows[..3].copy_from_slice(&[3, 3, 4]);
    config
}

#[test]
fn smaller_tiles_multiply_within_their_shapes() {
    assert!(is_testable());
    let [start, left, right] = [1, 2, 3].map(|stream| whole_tiles(1, stream).remove(0));
    let start = Tile(start.0.map(|word| (word as i8 as f32).to_bits()));
    let mut back = Tile([u32::MAX; SIDE * SIDE]);
    // SAFETY: the configuration is valid; whole tiles are behind the pointers.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{start} + {row}]",
            "tileloadd tmm1, [{left} + {row}]",
            "tileloadd tmm2, [{right} + {row}]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "tilestored [{back} + {row}], tmm0",
            "tilerelease",
            config = in(reg) &small_config(),
            start = in(reg) &start,
            left = in(reg) &left,
            right = in(reg) &right,
            back = in(reg) &raw mut back,
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
        );
    }
    for (i, &got) in back.0.iter().enumerate() {
        let (row, column) = (i / SIDE, i % SIDE);
        let products = (0..4).map(|k| (pair_at(&left, row, k), pair_at(&right, k, column)));
        let sum: f32 = products.map(|(a, b)| a[0] * b[0] + a[1] * b[1]).sum();
        let want =
            if row < 3 && column < 5 { (f32::from_bits(start.0[i]) + sum).to_bits() } else { u32::MAX };
        assert_eq!(got, want, "row {row}, column {column}");
    }
}

#[test]
fn what_the_manual_forbids_is_a_fault() {
    // SAFETY: both are 64 bytes without padding.
    let bytes = |config: Config| unsafe { core::mem::transmute::<Config, [u8; 64]>(config) };
    let small = small_config();
    let valid = bytes(small);
    assert_eq!(valid[..4], [1, 0, 0, 0]);
    assert_eq!(valid[16..24], [20, 0, 16, 0, 20, 0, 0, 0]);
    assert_eq!(valid[48..52], [3, 3, 4, 0]);
    let mut unit = Box::new(TileUnit::NEW);
    assert!(unit.add_products(0, 1, 2).is_err(), "not configured");
    for (at, value) in
        [(0, 2), (1, 1), (2, 1), (15, 1), (32, 1), (56, 1), (16, 65), (48, 17), (50, 0), (20, 0)]
    {
        let mut config = valid;
        config[at] = value;
        assert!(unit.configure(&config).is_err(), "byte {at} is {value}");
    }
    unit.configure(&valid).unwrap();
    unit.add_products(0, 1, 2).unwrap();
    for (sums, left, right) in [(0, 2, 1), (0, 0, 2), (0, 1, 1), (2, 1, 2), (0, 1, 3), (1, 0, 2)] {
        assert!(unit.add_products(sums, left, right).is_err(), "{sums} += {left} {right}");
    }
    unit.configure(&[0; 64]).unwrap();
    assert!(unit.add_products(0, 1, 2).is_err(), "palette 0 releases");
}

#[test]
fn instructions_are_decoded_as_assemblers_write_them() {
    use Operation::{AddProducts, Load, LoadConfig, Release, Store, Zero};
    let at = |base, index, scale, displacement| Address {
        base,
        index,
        scale,
        displacement,
        after_instruction: false,
    };
    let relative = Address { displacement: 0x1234, after_instruction: true, ..Address::default() };
    let none = Address::default();
    // What GNU as makes of ldtilecfg [r13]; [r12+rcx*4-8]; [rip+0x1234]; tilerelease; tilezero tmm5; tileloadd tmm4, [rdi+r8]; tmm6,
    // [r13+r12*2]; tmm7, [rbp+rbx*8-0x1000]; tmm2, [rcx*4+0x40]; tilestored [r9+rax*4+64], tmm3; tdpbf16ps tmm3, tmm4, tmm5.
    type Known<'a> = (&'a [u8], Operation, usize, [usize; 2], Address);
    let known: [Known<'_>; 11] = [
        (&[0xc4, 0xc2, 0x78, 0x49, 0x45, 0], LoadConfig, 0, [5, 0], at(Some(13), None, 0, 0)),
        (&[0xc4, 0xc2, 0x78, 0x49, 0x44, 0x8c, 0xf8], LoadConfig, 0, [4, 0], at(Some(12), Some(1), 4, -8)),
        (&[0xc4, 0xe2, 0x78, 0x49, 0x05, 0x34, 0x12, 0, 0], LoadConfig, 0, [5, 0], relative),
        (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Release, 0, [0, 0], none),
        (&[0xc4, 0xe2, 0x7b, 0x49, 0xe8], Zero, 5, [0, 0], none),
        (&[0xc4, 0xa2, 0x7b, 0x4b, 0x24, 0x07], Load, 4, [4, 0], at(Some(7), Some(8), 1, 0)),
        (&[0xc4, 0x82, 0x7b, 0x4b, 0x74, 0x65, 0], Load, 6, [4, 0], at(Some(13), Some(12), 2, 0)),
        (
            &[0xc4, 0xe2, 0x7b, 0x4b, 0xbc, 0xdd, 0, 0xf0, 0xff, 0xff],
            Load,
            7,
            [4, 0],
            at(Some(5), Some(3), 8, -0x1000),
        ),
        (&[0xc4, 0xe2, 0x7b, 0x4b, 0x14, 0x8d, 0x40, 0, 0, 0], Load, 2, [4, 0], at(None, Some(1), 4, 0x40)),
        (&[0xc4, 0xc2, 0x7a, 0x4b, 0x5c, 0x81, 0x40], Store, 3, [4, 0], at(Some(9), Some(0), 4, 64)),
        (&[0xc4, 0xe2, 0x52, 0x5c, 0xdc], AddProducts, 3, [4, 5], none),
    ];
    for (bytes, operation, reg, [rm, vvvv], address) in known {
        let mut rest = bytes.iter().copied();
        let got = decode(|| rest.next().unwrap());
        assert_eq!(got, Ok(Instruction { operation, reg, rm, vvvv, address }), "{bytes:02x?}");
        assert_eq!(rest.next(), None, "{bytes:02x?} is longer");
    }
    // sttilecfg [rax]; tileloaddt1 tmm1, [rax+rcx]; tdpbssd tmm0, tmm1, tmm2; ud2; vpdpbusd xmm0, xmm1, xmm2; tilezero tmm13.
    let unknown: [&[u8]; 6] = [
        &[0xc4, 0xe2, 0x79, 0x49, 0x00],
        &[0xc4, 0xe2, 0x79, 0x4b, 0x0c, 0x08],
        &[0xc4, 0xe2, 0x6b, 0x5e, 0xc1],
        &[0x0f, 0x0b],
        &[0xc4, 0xe2, 0x71, 0x50, 0xc2],
        &[0xc4, 0x62, 0x7b, 0x49, 0xe8],
    ];
    for bytes in unknown {
        let mut rest = bytes.iter().copied();
        assert!(decode(|| rest.next().unwrap()).is_err(), "{bytes:02x?}");
    }
}

#[test]
fn small_numbers_are_flushed() {
    assert!(is_testable());
    let word = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    let (mut left, mut right) = (Tile::ZERO, Tile::ZERO);
    // Row 0: a number below the normal ones times a large one; row 1: a result below them.
    left.0[0] = word(1e-39);
    left.0[SIDE] = word(-1e-20);
    right.0[0] = word(1e20);
    right.0[1] = word(1e-20);
    let mut out = [f32::NAN; BLOCK];
    with_tiles(|| multiply([&[left]; 2], [&[right]; 2], 2 * SIDE, &mut out));
    assert_eq!([out[0], out[1]], [0.0, 0.0]);
    let want = bf16::from_f32(-1e-20).to_f32();
    assert_eq!([out[2 * SIDE], out[2 * SIDE + 1]], [want * bf16::from_f32(1e20).to_f32(), 0.0]);
}

/// The premise of [`is_permitted`]: no stack of the standard library's makes the kernel refuse.
#[test]
fn signal_stacks_of_threads_are_as_large_as_the_kernel_says() {
    let check = || {
        // SAFETY: asks the kernel for a number, and for this thread's stack without changing it.
        let (least, stack) = unsafe {
            let mut stack: libc::stack_t = core::mem::zeroed();
            assert_eq!(libc::sigaltstack(core::ptr::null(), &raw mut stack), 0);
            (libc::getauxval(libc::AT_MINSIGSTKSZ) as usize, stack)
        };
        let off = stack.ss_flags & libc::SS_DISABLE != 0;
        assert!(off || stack.ss_size >= least, "{} bytes of at least {least}", stack.ss_size);
    };
    check();
    std::thread::spawn(check).join().unwrap();
    rayon::broadcast(|_| check());
}

#[test]
fn without_tiles_there_is_no_permission() {
    assert!(has_tiles() || !is_permitted());
}

#[test]
fn another_illegal_instruction_still_kills() {
    const CHILD: &str = "TAPER_TEST_ILLEGAL_INSTRUCTION";
    if std::env::var_os(CHILD).is_some() {
        install();
        // SAFETY: defined to raise SIGILL, which is what is wanted.
        unsafe { asm!("ud2") };
    }
    let name = "product::amx::tests::another_illegal_instruction_still_kills";
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(run.status.signal(), Some(libc::SIGILL), "{run:?}");
}
