//! Metrics as Prometheus takes them: a fold of intervals, and what a scrape gets of it.
//!
//! `native` is a distribution that only grows, `figures` makes a column a gauge or a counter, `page`
//! spells it all.

mod families;
mod figures;
mod native;
mod page;

pub use native::{BUCKETS, SCHEMA};
pub use page::{Format, Page};

use crate::model::columns::{self, Row};
use crate::model::interval::{HostInterval, Interval, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::{Run, RunVm};
use crate::model::swap::SwapState;
use crate::recent::{Board, History, slim};
use crate::slo::Objective;
use figures::{Figure, Known};
use native::Native;
use overcommit_ebpf::layout::Loss;
use prometheus_client::metrics::MetricType;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time for which a VM that has ended is told of: its last counts wait for a scrape.
const ENDED_NS: u64 = 60_000_000_000;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Options {
    /// The finest that native histograms are.
    pub schema: i8,
    /// How many buckets each of them has at the most.
    pub buckets: u16,
    /// Sums of the host, and nothing by VM.
    pub aggregate: bool,
    /// What VMs must meet.
    pub objectives: Vec<Objective>,
}

/// All that was counted since it began, by VM.
pub struct Exposition {
    options: Options,
    figures_of_host: Vec<Figure<HostInterval>>,
    figures_of_vms: Vec<Figure<VmInterval>>,
    now_ns: u64,
    intervals: u64,
    /// As of the last interval; `None` before the first.
    run: Option<Arc<Run>>,
    last: HostInterval,
    host: Vec<Option<Known>>,
    /// Over all VMs, also those that are gone; only where nothing is told by VM.
    sums: Latest,
    /// What was not counted of all VMs, by [`Loss`].
    lost: [u64; Loss::COUNT],
    /// Time of all VMs, in nanoseconds: stalls, waits for a CPU in them, vCPUs × time.
    stalls: [u64; 3],
    /// The most VMs that had no place.
    unserved: u64,
    /// By id.
    vms: BTreeMap<String, Vm>,
    history: History,
}

/// Latencies by metric.
type Latest = BTreeMap<MetricName, Native>;

/// A VM.
struct Vm {
    labels: Arc<Vec<(&'static str, String)>>,
    /// What else is known of it, see [`families::about`].
    about: Vec<(&'static str, String)>,
    since: SystemTime,
    /// When it was there last, see [`Exposition::now_ns`].
    seen_ns: u64,
    figures: Vec<Option<Known>>,
    swap_state: SwapState,
    latencies: Latest,
}

impl Vm {
    fn new(of: &RunVm) -> Self {
        Self {
            labels: Arc::default(),
            about: Vec::new(),
            since: UNIX_EPOCH + Duration::from_micros(of.first_seen_us),
            seen_ns: 0,
            figures: Vec::new(),
            swap_state: SwapState::Unknown,
            latencies: Latest::new(),
        }
    }

    /// It is there at that time. Its process may have become another VM.
    fn is_there(&mut self, of: &RunVm, swap_state: SwapState, now_ns: u64) {
        let uuid = of.uuid.clone().unwrap_or_default();
        let labels = [("vm", of.name.clone()), ("uuid", uuid), ("vm_id", of.vm_id.clone())];
        (self.labels, self.about) = (Arc::new(labels.into()), families::about(of));
        (self.swap_state, self.seen_ns) = (swap_state, now_ns);
    }
}

impl Exposition {
    /// Nothing yet.
    pub fn new(options: Options) -> Self {
        let host = columns::host().into_iter();
        let vms = columns::vms().into_iter();
        Self {
            options,
            figures_of_host: host.filter_map(|of| Figure::of("host", of)).collect(),
            figures_of_vms: vms.filter_map(|of| Figure::of("vm", of)).collect(),
            now_ns: 0,
            intervals: 0,
            run: None,
            last: HostInterval::default(),
            host: Vec::new(),
            sums: Latest::new(),
            lost: [0; Loss::COUNT],
            stalls: [0; 3],
            unserved: 0,
            vms: BTreeMap::new(),
            history: History::of_the_last_minute(),
        }
    }

    /// Adds an interval.
    pub fn add(&mut self, run: &Arc<Run>, interval: Interval) {
        self.now_ns = self.now_ns.saturating_add(interval.place.length_ns);
        self.intervals += 1;
        let row = Row { run, place: &interval.place, of: &interval.host };
        let looked_ns = interval.host.swap.rates.map_or(0, |rates| rates.length_ns);
        update(&self.figures_of_host, &mut self.host, &row, [looked_ns, self.now_ns]);
        for vm in &interval.vms {
            self.add_vm(run, &interval, vm);
        }
        let now_ns = self.now_ns;
        self.vms.retain(|_, vm| now_ns - vm.seen_ns <= ENDED_NS);
        for vm in self.vms.values_mut().filter(|vm| vm.seen_ns < now_ns) {
            // What it counted stays, what it held is gone.
            let gauges = self.figures_of_vms.iter().zip(&mut vm.figures);
            let gauges = gauges.filter(|(figure, _)| figure.kind == MetricType::Gauge);
            gauges.for_each(|(_, known)| *known = None);
        }
        self.unserved = self.unserved.max(run.not_counted.vms_without_slot);
        self.history.add(run, slim(&interval));
        self.run = Some(Arc::clone(run));
        self.last = interval.host;
    }

    fn add_vm(&mut self, run: &Arc<Run>, interval: &Interval, vm: &VmInterval) {
        let Some(of) = run.vms.get(vm.vm) else { return };
        let Options { schema, buckets, .. } = self.options;
        let add = |latest: &mut Latest| {
            for metric in &vm.metrics {
                let latencies = latest.entry(metric.name.clone());
                latencies.or_insert_with(|| Native::new(schema, buckets)).add(&metric.latencies);
            }
        };
        if self.options.aggregate {
            add(&mut self.sums);
            self.lost.iter_mut().zip(vm.not_counted).for_each(|(sum, lost)| *sum += lost);
            let stall = vm.stall.unwrap_or_default();
            let times = [stall.waited_ns, stall.runq_ns, stall.vcpu_ns];
            self.stalls.iter_mut().zip(times).for_each(|(sum, ns)| *sum += ns);
            return;
        }
        let entry = self.vms.entry(of.vm_id.clone()).or_insert_with(|| Vm::new(of));
        add(&mut entry.latencies);
        entry.is_there(of, vm.swap.state, self.now_ns);
        let row = Row { run, place: &interval.place, of: vm };
        let looked_ns = vm.swap.rates.map_or(0, |rates| rates.length_ns);
        update(&self.figures_of_vms, &mut entry.figures, &row, [looked_ns, self.now_ns]);
    }

    /// Whether there is something to tell.
    pub fn is_ready(&self) -> bool {
        self.run.is_some()
    }

    /// What a scrape gets now.
    pub fn page(&self) -> Page {
        let (Some(run), Some(line)) = (&self.run, self.history.lines().back()) else {
            return Page::default();
        };
        let board = Board::of(run, &self.history, line, &self.options.objectives);
        self.families(run, &board)
    }
}

fn update<T>(
    figures: &[Figure<T>],
    so_far: &mut Vec<Option<Known>>,
    row: &Row<'_, T>,
    [looked_ns, now_ns]: [u64; 2],
) {
    so_far.resize(figures.len(), None);
    for (figure, so_far) in figures.iter().zip(so_far) {
        figure.update(so_far, row, looked_ns, now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::coverage::Coverage;
    use crate::model::interval::{MetricInterval, Place};
    use crate::model::latencies::Latencies;
    use crate::model::swap::Rates;
    use crate::recording::{Folder, Recording, Span};
    use std::collections::BTreeSet;
    use std::path::Path;

    fn options(aggregate: bool) -> Options {
        let objectives = vec![Objective::parse("fault.major:p99<2ms").unwrap()];
        Options { schema: SCHEMA, buckets: BUCKETS, aggregate, objectives }
    }

    /// Of the recording that has every figure.
    fn of_everything(aggregate: bool) -> Exposition {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/now");
        let recording = Recording::open(&Folder::open(&path).unwrap()).unwrap();
        let run = Arc::new(recording.run.clone());
        let mut exposition = Exposition::new(options(aggregate));
        let add = |interval: &Interval| {
            exposition.add(&run, interval.copied(|_| true, |_| true));
            Ok(())
        };
        recording.each(Span::WHOLE, &|_| true, add).unwrap();
        exposition
    }

    fn text(exposition: &Exposition) -> String {
        let page = Arc::new(exposition.page()).encode(Format::Text).unwrap();
        String::from_utf8(page).unwrap()
    }

    /// As `OVERCOMMIT_BLESS=1` writes it.
    #[test]
    fn a_page_is_as_ever() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/metrics.txt");
        let now = text(&of_everything(false));
        if std::env::var_os("OVERCOMMIT_BLESS").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), now);
    }

    #[test]
    fn each_format_has_it_all() {
        for aggregate in [false, true] {
            let page = Arc::new(of_everything(aggregate).page());
            let open = String::from_utf8(page.encode(Format::OpenMetrics).unwrap()).unwrap();
            assert!(open.ends_with("# EOF\n"));
            let named = |line: &str| Some(line.strip_prefix("# TYPE ")?.to_owned());
            let families: Vec<String> = open.lines().filter_map(named).collect();
            assert_eq!(families.iter().collect::<BTreeSet<_>>().len(), families.len());
            for family in &page.families {
                let labels = family.samples.iter().map(|(labels, _)| labels);
                assert_eq!(labels.clone().collect::<BTreeSet<_>>().len(), labels.len());
                let help = &family.help;
                let words: Vec<&str> = help.split(|c: char| !c.is_ascii_alphabetic()).collect();
                let riddles = ["It", "it", "its", "Its", "That", "same", "ns"];
                let is_riddle = |word: &&str| words.contains(word);
                assert!(!riddles.iter().any(is_riddle) && !help.contains('`'), "{help}");
            }
            assert!(!page.encode(Format::Protobuf).unwrap().is_empty());
            let [as_text, native] = page.series();
            let body = String::from_utf8(page.encode(Format::Text).unwrap()).unwrap();
            assert_eq!(body.lines().filter(|line| !line.starts_with('#')).count(), as_text);
            assert!(!aggregate || native <= 40, "{native}");
        }
    }

    /// Names of series as text has them, those of histograms without an end too; and labels.
    fn known() -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for line in [false, true].map(|aggregate| text(&of_everything(aggregate))).join("").lines()
        {
            if let Some(histogram) = line.strip_suffix(" histogram") {
                names.extend(histogram.strip_prefix("# TYPE ").map(str::to_owned));
            } else if !line.starts_with('#') {
                let (series, _) = line.rsplit_once(' ').unwrap();
                let (name, of) = series.split_once('{').unwrap_or((series, ""));
                names.insert(name.to_owned());
                labels.extend(of.trim_end_matches('}').split(',').map(str::to_owned));
            }
        }
        (names, labels)
    }

    #[test]
    fn what_dashboards_and_rules_ask_for_is_there() {
        let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist");
        let (names, labels) = known();
        let mut asked = 0;
        for file in ["prometheus/overcommit.rules.yml", "grafana/overcommit.json"] {
            let text = std::fs::read_to_string(dist.join(file)).unwrap().replace("\\\"", "\"");
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            for name in text.split(|c: char| !is_name(c)) {
                if name.starts_with("overcommit_") {
                    assert!(names.contains(name), "{file}: {name}");
                    asked += 1;
                }
            }
            for label in ["verdict", "state", "kind"] {
                for rest in text.split(&format!("{label}=")).skip(1) {
                    let value = rest.trim_start_matches('~').strip_prefix('"').unwrap();
                    for value in value.split('"').next().unwrap().split('|') {
                        let label = format!("{label}=\"{value}\"");
                        let is_known = labels.contains(&label) || value == "broken";
                        assert!(is_known, "{file}: {label}");
                    }
                }
            }
        }
        assert!(asked > 40, "{asked}");
    }

    /// A second with a major fault of each of these VMs.
    fn second(vms: &[usize]) -> Interval {
        let mut latencies = Latencies::empty();
        latencies.record(1_000, 1);
        let vm = |vm: &usize| VmInterval {
            vm: *vm,
            metrics: vec![MetricInterval {
                vm: *vm,
                name: MetricName::new("fault.major"),
                coverage: Coverage::Full,
                latencies: latencies.clone(),
            }],
            ..VmInterval::default()
        };
        let place = Place { length_ns: 1_000_000_000, ..Place::default() };
        Interval { place, vms: vms.iter().map(vm).collect(), ..Interval::default() }
    }

    fn run(ids: &[&str]) -> Arc<Run> {
        let vm = |id: &&str| RunVm {
            vm_id: (*id).to_owned(),
            name: format!("name of {id}"),
            ..RunVm::default()
        };
        Arc::new(Run { vms: ids.iter().map(vm).collect(), ..Run::default() })
    }

    #[test]
    fn what_is_counted_by_rates_is_of_the_time_that_was_looked_at() {
        let mut exposition = Exposition::new(options(false));
        let pages = |exposition: &Exposition| {
            let text = text(exposition);
            let line = text.lines().find(|line| line.starts_with(PAGES)).map(str::to_owned);
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        const PAGES: &str = "overcommit_host_swapped_in_pages_total";
        let run = run(&["1-1"]);
        for looked_ns in [None, Some(1_500_000_000), None, Some(500_000_000)] {
            let mut interval = second(&[0]);
            interval.host.swap.rates = looked_ns.map(|length_ns| Rates {
                length_ns,
                swapped_in: Some(100.0),
                ..Rates::default()
            });
            exposition.add(&run, interval);
        }
        assert_eq!(pages(&exposition), Some(200.0));
    }

    #[test]
    fn what_a_vm_held_goes_with_it_and_what_is_not_looked_at_stays_for_a_while() {
        let mut exposition = Exposition::new(options(false));
        let run = run(&["1-1", "2-2"]);
        let holds = |exposition: &Exposition| {
            let text = text(exposition);
            let is_it = |line: &&str| line.starts_with("overcommit_vm_configured_bytes{");
            text.lines().filter(is_it).count()
        };
        let mut interval = second(&[0, 1]);
        interval.vms.iter_mut().for_each(|vm| vm.configured = Some(1 << 30));
        exposition.add(&run, interval);
        assert_eq!(holds(&exposition), 2);
        exposition.add(&run, second(&[0]));
        assert_eq!(holds(&exposition), 1, "of the one that is gone nothing is held");
        exposition.add(&run, second(&[0]));
        assert_eq!(holds(&exposition), 1);
        exposition.add(&run, second(&[0]));
        assert_eq!(holds(&exposition), 0, "it is not known any more");
    }

    #[test]
    fn a_vm_keeps_its_counts_and_goes_a_minute_after_its_end() {
        let mut exposition = Exposition::new(options(false));
        let counts = |exposition: &Exposition| -> Vec<(String, u64)> {
            let of = |(id, vm): (&String, &Vm)| {
                let majors = &vm.latencies[&MetricName::new("fault.major")];
                (id.clone(), majors.count())
            };
            exposition.vms.iter().map(of).collect()
        };
        for _ in 0..3 {
            exposition.add(&run(&["1-1", "2-2"]), second(&[0, 1]));
        }
        // Another has the first one's place.
        exposition.add(&run(&["3-3", "2-2"]), second(&[0, 1]));
        let all = [("1-1", 3), ("2-2", 4), ("3-3", 1)].map(|(id, count)| (id.to_owned(), count));
        assert_eq!(counts(&exposition), all);
        assert!(text(&exposition).contains("vm=\"name of 1-1\""));
        for _ in 0..60 {
            exposition.add(&run(&["3-3", "2-2"]), second(&[0]));
        }
        assert_eq!(counts(&exposition), [("2-2".to_owned(), 4), ("3-3".to_owned(), 61)]);
        exposition.add(&run(&["3-3", "2-2"]), second(&[0]));
        assert_eq!(counts(&exposition), [("3-3".to_owned(), 62)]);
        assert!(!text(&exposition).contains("2-2"));
    }
}
