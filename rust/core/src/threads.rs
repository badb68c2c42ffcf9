//! Worker threads that survive `fork`, and work that can be interrupted.
//!
//! If a process forks, as a data loader does for its workers, the child has the memory of a thread
//! pool but none of its threads. It would wait for them for ever. Pools are therefore kept per
//! process id.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result, reserve};

/// A number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One for every core that this process may use.
    AllCores,
    /// This number.
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

/// How often a [`Stop`] asks whether to stop.
const POLL: Duration = Duration::from_millis(50);

static INTERRUPT: OnceLock<fn() -> bool> = OnceLock::new();

/// Sets the function that long work asks whether to stop: about every 50 ms, on the thread that
/// began the work. Work that is stopped returns [`Error::Interrupted`]. The first call counts.
pub fn set_interrupt(requested: fn() -> bool) {
    INTERRUPT.get_or_init(|| requested);
}

thread_local! {
    /// When this thread asks next.
    static NEXT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether a piece of work is to stop, for all of its threads.
pub(crate) struct Stop {
    requested: AtomicBool,
    /// The thread that began the work, the only one that asks.
    asking: ThreadId,
}

impl Stop {
    pub(crate) fn new() -> Self {
        NEXT.set(Some(Instant::now() + POLL));
        Self { requested: AtomicBool::new(false), asking: std::thread::current().id() }
    }

    /// Whether to stop. Costs a look at the clock: call it once for thousands of tokens.
    pub(crate) fn requested(&self) -> bool {
        if self.requested.load(Ordering::Relaxed) {
            return true;
        }
        if std::thread::current().id() != self.asking {
            return false;
        }
        let now = Instant::now();
        if NEXT.get().is_some_and(|next| now < next) {
            return false;
        }
        NEXT.set(Some(now + POLL));
        let requested = INTERRUPT.get().is_some_and(|requested| requested());
        self.requested.store(requested, Ordering::Relaxed);
        requested
    }

    /// The same as an error, for work on one thread.
    pub(crate) fn check(&self) -> Result<()> {
        if self.requested() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The error of work that was stopped.
    pub(crate) fn outcome(&self) -> Result<()> {
        if self.requested.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// How many steps of some nanoseconds may come between two looks at a [`Stop`].
const STEPS_PER_LOOK: usize = 64 * 1024;

/// The numbers below `count` in runs of small steps: look at a [`Stop`] before each run.
pub(crate) fn runs(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(STEPS_PER_LOOK).map(move |start| start..count.min(start + STEPS_PER_LOOK))
}

/// So many zeros. The first touch of a page takes longer than most work on it, so that a signal may
/// come meanwhile; `vec![0; _]` touches all pages that have been used before at once.
pub(crate) fn zeros(what: &'static str, length: usize, stop: &Stop) -> Result<Vec<i64>> {
    let mut values = Vec::new();
    reserve(what, &mut values, length)?;
    for run in runs(length) {
        stop.check()?;
        values.resize(run.end, 0);
    }
    Ok(values)
}

struct Pool {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOLS: Mutex<Vec<Pool>> = Mutex::new(Vec::new());

/// Runs `work` on `threads` threads at once, including this one, and waits for all of them. Work
/// that takes long looks at the [`Stop`] between its parts.
pub(crate) fn run(threads: usize, work: impl Fn(&Stop) + Sync) -> Result<()> {
    let (helpers, stop) = (threads.saturating_sub(1), Stop::new());
    if helpers == 0 {
        work(&stop);
        return stop.outcome();
    }
    // This thread starts at once, while the others are still waking up.
    pool(helpers)?.in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work(&stop));
        }
        work(&stop);
    });
    stop.outcome()
}

/// Calls `each` with the numbers below `count` on `threads` threads; returns what it returned, in
/// order. `state` makes what a thread keeps between its calls.
pub(crate) fn in_parallel<S, R: Send>(
    count: usize,
    threads: usize,
    state: impl Fn() -> S + Sync,
    each: impl Fn(&mut S, usize) -> R + Sync,
) -> Result<Vec<R>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    run(threads.min(count), |stop| {
        let mut state = state();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || stop.requested() {
                return;
            }
            let result = each(&mut state, number);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        }
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    // If another thread held the lock when this process was forked, the lock is held for ever. A
    // pool for this call costs less than waiting.
    let Ok(mut pools) = POOLS.try_lock() else {
        return build(threads);
    };
    let process = std::process::id();
    if let Some(known) = pools.iter().find(|p| p.process == process && p.threads == threads) {
        return Ok(Arc::clone(&known.pool));
    }
    // The pools of the parent process have no threads in this process that could be stopped.
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
