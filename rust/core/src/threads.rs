//! Worker threads that survive `fork`.
//!
//! A process that forks (a data loader does, for its workers) leaves the threads of a pool behind:
//! the child has the pool's memory and none of its threads, and would wait for them for ever. So
//! pools are kept per process id.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// How many threads work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One for every core that this process may use.
    AllCores,
    /// So many.
    Count(NonZeroUsize),
}

impl Threads {
    /// The number as a number.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::AllCores => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            Self::Count(count) => count.get(),
        }
    }
}

struct Pool {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOLS: Mutex<Vec<Pool>> = Mutex::new(Vec::new());

/// Runs `work` on so many threads at once, this one among them, and waits for all of them.
pub(crate) fn run(threads: usize, work: impl Fn() + Sync) -> Result<()> {
    let helpers = threads.saturating_sub(1);
    if helpers == 0 {
        work();
        return Ok(());
    }
    // This thread starts at once, while the others are still waking up.
    pool(helpers)?.in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work());
        }
        work();
    });
    Ok(())
}

fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    // The lock may have been held by another thread while this process was forked off, and is
    // held for ever then: a pool of one's own costs less than a wait.
    let Ok(mut pools) = POOLS.try_lock() else {
        return build(threads);
    };
    let process = std::process::id();
    if let Some(known) = pools.iter().find(|p| p.process == process && p.threads == threads) {
        return Ok(Arc::clone(&known.pool));
    }
    // Pools of the parent process have no threads here that could be told to end.
    let (ours, foreign) = pools.drain(..).partition(|p| p.process == process);
    *pools = ours;
    std::mem::forget::<Vec<Pool>>(foreign);
    let pool = build(threads)?;
    pools.push(Pool { process, threads, pool: Arc::clone(&pool) });
    Ok(pool)
}

fn build(threads: usize) -> Result<Arc<ThreadPool>> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("simct-align-{index}"))
        .build()
        .map(Arc::new)
        .map_err(|error| Error::Threads { threads, reason: error.to_string() })
}
