//! `overcommit serve`

use crate::channel::Channels;
use crate::commands::subject::{Subject, raise_limit};
use crate::commands::whom::{find, selection};
use crate::commands::{WHERE, require_hosts_pids, require_root};
use crate::serve::{Server, listen};
use crate::session::run::{GO_ON, Told, Until, follow};
use crate::session::wait::{Waiter, Woken};
use crate::terminal::say;
use anyhow::{Context, Result, ensure};
use overcommit_recording::exposition::{BUCKETS, Exposition, Options, SCHEMA};
use overcommit_recording::guest::message::VSOCK_PORT;
use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::run::Run;
use overcommit_recording::view::presence::ended;
use sd_notify::NotifyState;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Shorter ones have no look at the host each, longer ones make scrapes stale.
const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// Options that say how metrics are served.
const SCRAPED: [&str; 4] = ["listen", "aggregate", "native_schema", "native_buckets"];

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("slow_faults", |slow| slow.hide(true)))]
#[command(after_help = "Examples:
  overcommit serve                                metrics of every VM at 127.0.0.1:9555/metrics
  overcommit serve --vm 'web-*' --slo 'fault.major:p99<2ms'
  overcommit serve --aggregate                    sums of the host, without series of each VM
  overcommit serve --guests 'web-*'               also tell these VMs their own figures

Prometheus reads classic histograms as they are; native ones it takes with
scrape_native_histograms: true (before 3.8: --enable-feature=native-histograms). Whoever reaches the
address can read the VMs' names and figures. How a VM asks for its own, and what it gets, is in
docs/guest-protocol.md; inside the VM: overcommit guest.")]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Address to listen on
    #[arg(long, help_heading = WHERE, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9555")]
    listen: SocketAddr,
    /// Finest resolution of native histograms: 3 is 9.1 % per bucket, 6 is 1.1 %, 8 is 0.3 %
    #[arg(long, help_heading = WHERE, value_name = "N", default_value_t = SCHEMA)]
    #[arg(value_parser = clap::value_parser!(i8).range(3..=8))]
    native_schema: i8,
    /// Maximum number of buckets in a native histogram; beyond that it becomes coarser
    #[arg(long, help_heading = WHERE, value_name = "N", default_value_t = BUCKETS)]
    #[arg(value_parser = clap::value_parser!(u16).range(160..=4096))]
    native_buckets: u16,
    /// Only sums over all VMs, for hosts with thousands
    #[arg(long, help_heading = WHERE)]
    aggregate: bool,
    /// Tell each VM whose name or uuid matches PATTERN (may be a glob) its own figures when it asks,
    /// over virtio-serial or vsock; may be repeated
    #[arg(long, help_heading = WHERE, value_name = "PATTERN", value_parser = Pattern::parse)]
    guests: Vec<Pattern>,
    /// Tell guests, and serve no metrics
    #[arg(long, help_heading = WHERE, requires = "guests", conflicts_with_all = SCRAPED)]
    guests_only: bool,
}

/// Serves metrics until it is stopped.
///
/// # Errors
/// What failed, on what, and what to do next.
pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(
        args.subject.slow_faults.is_none(),
        "serve does not report individual slow faults; use --slow-faults with record or top"
    );
    let interval = args.subject.interval;
    ensure!(INTERVALS.contains(&interval), "serve takes an --interval from 1s to 1m");
    require_root()?;
    require_hosts_pids()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&args))
}

async fn serve(args: &Args) -> Result<ExitCode> {
    let mut waiter = Waiter::new()?;
    raise_limit()?;
    let selection = selection(&args.subject)?;
    let listeners = Listeners::start(args, &waiter)?;
    if args.subject.wait.is_some() {
        // Nobody is to wait for it as long as it waits itself.
        notify(NotifyState::Ready);
    }
    let found = match find(&args.subject, false, &selection, &mut waiter).await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let mut session = args.subject.begin(selection, found, &mut waiter, false, false)?;
    if let Woken::Signal(_) = waiter.rest(Duration::ZERO).await {
        return Ok(ExitCode::SUCCESS);
    }
    listeners.say();
    let until = Until { interval: args.subject.interval, duration: None, slow_faults: false };
    let mut is_ready = false;
    let take = |run: &Run, told: Told<'_>| {
        match told {
            Told::Interval(interval) => {
                listeners.tell(run, interval);
                if !std::mem::replace(&mut is_ready, true) {
                    notify(NotifyState::Ready);
                }
            }
            Told::Ended(vm) => tell_of_loss(run, vm),
            Told::SlowFaults(_) => {}
        }
        GO_ON
    };
    let end = follow(&until, &mut session, &mut waiter, &mut None, take).await;
    notify(NotifyState::Stopping);
    let served = listeners.end();
    end.context("the metrics end here")?;
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Whoever is told of each interval.
struct Listeners {
    /// Who scrapes metrics, and where.
    metrics: Option<(Server, SocketAddr)>,
    /// The guests.
    guests: Option<Channels>,
    /// Those as they were given.
    patterns: Vec<String>,
}

impl Listeners {
    fn start(args: &Args, waiter: &Waiter) -> Result<Self> {
        let metrics = || -> Result<(Server, SocketAddr)> {
            let (listener, address) = listen(args.listen)?;
            let exposition = Exposition::new(Options {
                schema: args.native_schema,
                buckets: args.native_buckets,
                aggregate: args.aggregate,
                objectives: args.subject.objectives.read(),
            });
            Ok((Server::start(listener, exposition, waiter.enough())?, address))
        };
        let metrics = (!args.guests_only).then(metrics).transpose()?;
        let guests = (!args.guests.is_empty())
            .then(|| Channels::start(args.guests.clone(), waiter.enough()))
            .transpose()?;
        let patterns = args.guests.iter().map(Pattern::to_string).collect();
        Ok(Self { metrics, guests, patterns })
    }

    fn say(&self) {
        if let Some((_, address)) = &self.metrics {
            say(&format!(
                "overcommit: serving metrics at http://{address}/metrics; Ctrl-C ends it"
            ));
        }
        if let Some(guests) = &self.guests {
            let vsock = match guests.has_vsock() {
                true => format!(" and port {VSOCK_PORT} of vsock"),
                false => String::new(),
            };
            say(&format!(
                "overcommit: telling guests ({}) their own figures, by virtio-serial{vsock}",
                self.patterns.join(", ")
            ));
        }
    }

    fn tell(&self, run: &Run, interval: &Interval) {
        let run = Arc::new(run.clone());
        self.metrics.iter().for_each(|(server, _)| server.tell(&run, interval));
        self.guests.iter().for_each(|guests| guests.tell(&run, interval));
    }

    fn end(self) -> Result<()> {
        let told = self.guests.map_or(Ok(()), Channels::end);
        let served = self.metrics.map_or(Ok(()), |(server, _)| server.end());
        told.and(served)
    }
}

/// The log of a service has each VM that was killed or crashed.
fn tell_of_loss(run: &Run, vm: usize) {
    if let Some(vm) = run.vms.get(vm).filter(|vm| vm.was_lost()) {
        say(&format!("overcommit: {}", ended(run, vm)));
    }
}

/// Tells systemd, if it waits for that.
fn notify(state: NotifyState<'_>) {
    let _ = sd_notify::notify(&[state]);
}
