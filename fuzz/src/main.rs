//! Seeded inputs to every target, on a stable Rust and without libFuzzer: see `make fuzz-rust-stable`.
//!
//!     simct-align-fuzz [--seconds 60] [--seed 0] [--jobs N]
//!     simct-align-fuzz --target NAME [--seconds 60] [--seed 0 | --input FILE]
//!
//! Without `--target`, every target runs in a process of its own, `--jobs` at a time (default: the
//! number of cores). A target draws random bytes and changes earlier inputs. If the program is
//! compiled with `-Cinstrument-coverage --cfg instrumented`, inputs that reach new code, or the same
//! code more often, are kept and changed further. The input of a failure is kept in
//! `fuzz/artifacts`.

mod changes;
mod coverage;

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coverage::Coverage;
use fastrand::Rng;
use simct_align_fuzz::seeds::seeds;
use simct_align_fuzz::targets::TARGETS;

/// How long one input may take.
const LONGEST: Duration = Duration::from_secs(20);

struct Options {
    seconds: f64,
    seed: u64,
    jobs: usize,
    target: Option<String>,
    input: Option<PathBuf>,
}

impl Options {
    fn from_arguments() -> Result<Self, String> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self { seconds: 60.0, seed: 0, jobs, target: None, input: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            let bad = format!("{name} {value}: expected a number");
            match name.as_str() {
                "--seconds" => options.seconds = value.parse().or(Err(bad))?,
                "--seed" => options.seed = value.parse().or(Err(bad))?,
                "--jobs" => options.jobs = value.parse().or(Err(bad))?,
                "--target" => options.target = Some(value),
                "--input" => options.input = Some(value.into()),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let Some(name) = &options.target else {
        return all_targets(&options);
    };
    let Some((_, run)) = TARGETS.into_iter().find(|(known, _)| known == name) else {
        eprintln!("there is no target {name}");
        return ExitCode::from(2);
    };
    match &options.input {
        Some(path) => run(&fs::read(path).expect("a file to read")),
        None => one_target(name, run, &options),
    }
    ExitCode::SUCCESS
}

/// Runs all targets, each in a process of its own; what it says is printed when it ends.
fn all_targets(options: &Options) -> ExitCode {
    let (names, failed) = (Mutex::new(TARGETS.iter()), AtomicBool::new(false));
    let program = std::env::current_exe().expect("the path of this program");
    let work = || {
        loop {
            let Some((name, _)) = names.lock().expect("no panic").next() else {
                return;
            };
            let mut command = Command::new(&program);
            command.args(["--target", name, "--seconds", &options.seconds.to_string()]);
            let ended = command.args(["--seed", &options.seed.to_string()]).output();
            let ended = ended.expect("this program starts again");
            let said = [ended.stdout, ended.stderr].concat();
            let mut said = String::from_utf8_lossy(&said).into_owned();
            if !ended.status.success() {
                failed.store(true, Ordering::Relaxed);
                let input = artifact(name);
                said += &format!(
                    "FAILED ({}), again with: --target {name} --input {}\n",
                    ended.status,
                    input.display()
                );
            }
            print!("{said}");
        }
    };
    std::thread::scope(|scope| {
        (0..options.jobs.max(1)).for_each(|_| {
            scope.spawn(work);
        });
    });
    ExitCode::from(u8::from(failed.load(Ordering::Relaxed)))
}

/// Where the input is that a target runs on, and stays if it fails.
fn artifact(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(name).join("stable")
}

/// Runs a target for the given time. A panic ends the process.
fn one_target(name: &str, run: fn(&[u8]), options: &Options) {
    let path = artifact(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for failing inputs");
    // To open a file anew for every input would take longer than the targets.
    let mut file = File::create(&path).expect("a file for the input");
    let begun = Instant::now();
    let limit = Duration::from_secs_f64(options.seconds);
    let mut rng = Rng::with_seed(options.seed);
    let mut coverage = Coverage::new();
    let mut kept = Vec::new();
    let mut ready = seeds(name).into_iter();
    let executions = end_if_one_takes_too_long();
    while begun.elapsed() < limit || ready.len() > 0 {
        let input = ready.next().unwrap_or_else(|| changes::draw(&mut rng, &kept));
        write_over(&mut file, &input).expect("room for the input");
        run(&input);
        executions.fetch_add(1, Ordering::Relaxed);
        if coverage.found_more() {
            kept.push(input);
        }
    }
    fs::remove_file(&path).expect("the file of the last input");
    let count = executions.load(Ordering::Relaxed);
    println!("{name}: {count} executions, {} inputs kept", kept.len());
}

/// Makes the bytes the whole content of a file.
fn write_over(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}

/// Counts executions. A thread ends the process if the count stays as it is for [`LONGEST`] seconds.
fn end_if_one_takes_too_long() -> Arc<AtomicU64> {
    let executions = Arc::new(AtomicU64::new(0));
    let watched = Arc::clone(&executions);
    std::thread::spawn(move || {
        let (mut known, mut since) = (0, Instant::now());
        while since.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(200));
            let count = watched.load(Ordering::Relaxed);
            if count != known {
                (known, since) = (count, Instant::now());
            }
        }
        eprintln!("an input takes longer than {LONGEST:?}");
        std::process::exit(1);
    });
    executions
}
