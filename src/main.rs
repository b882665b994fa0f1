//! `taper`: fine-tune small language models from JSONL by a recipe, prove the adapter, export it, generate with it.

mod adapters;
mod candidates;
mod card;
mod ci;
mod cli;
mod commands;
mod contract;
mod costs;
mod device;
mod fault;
mod interrupt;
mod lineage;
mod memory;
mod output;
mod session;
mod summary;
mod tasks;
mod validator;
mod workspace;

use clap::Parser;
use std::process::ExitCode;

/// glibc gives big buffers back to the kernel at once, and every operation then faults its pages in again; this allocator
/// keeps them ([`taper_kernels::keep_freed_pages`]): 2 to 5 times on elementwise work.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Files from outside are read by libraries that recurse. Address space until it is touched.
const STACK_BYTES: usize = 256 << 20;

fn main() -> ExitCode {
    taper_kernels::keep_freed_pages();
    let cli = cli::Cli::parse();
    let worker = std::thread::Builder::new().name("taper".into()).stack_size(STACK_BYTES);
    let work = move || {
        let pool = rayon::ThreadPoolBuilder::new();
        match cli.verb {
            // This thread waits for the server to end, and the engine has one of its own.
            cli::Verb::Serve(_) => pool,
            // This thread is one of the pool's: a parallel loop then starts at once where it is called, with no thread to be
            // woken for it.
            _ => pool.use_current_thread(),
        }
        .build_global()?;
        commands::dispatch(cli)
    };
    let outcome = worker.spawn(work).map(std::thread::JoinHandle::join);
    match outcome {
        Ok(Ok(Ok(code))) => code.into(),
        Ok(Ok(Err(error))) => fault::report(&error).into(),
        // The panic has already been told on stderr.
        Ok(Err(_)) => taper_diagnostics::ExitCode::Fault.into(),
        Err(error) => fault::report(&anyhow::Error::new(error)).into(),
    }
}
