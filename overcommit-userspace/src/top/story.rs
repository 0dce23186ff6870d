//! An invented host, of which every figure is known: twelve VMs, of which one grows and takes the
//! memory of another. Its screens are held against those in `screens/`; where they are to change,
//! `OVERCOMMIT_BLESS=1 cargo test screens` writes them anew.

use crate::top::Update;
use crate::top::app::{App, Ask};
use crate::top::look::Look;
use overcommit_ebpf::layout::{Metric, Part};
use overcommit_recording::model::breakdown::Breakdown;
use overcommit_recording::model::coverage::{Coverage, Seen};
use overcommit_recording::model::evictions::{Aggressor, AggressorClass, Eviction, EvictionCounts};
use overcommit_recording::model::interval::{
    HostInterval, Interval, MetricInterval, Place, Stall, StallSource, VmInterval,
};
use overcommit_recording::model::latencies::Latencies;
use overcommit_recording::model::memory::{
    HostPressure, MemoryUse, Overcommit, OvercommitState, Range, Source, WorkingSet,
};
use overcommit_recording::model::run::{EvictionSight, Options, Run, RunVm};
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::model::state::StateTimes;
use overcommit_recording::model::swap::{HostSwap, Memory, Rates, SwapState, VmSwap};
use overcommit_recording::model::swapins::Swapins;
use overcommit_recording::recording::span::Mark;
use overcommit_recording::slo::Objective;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::path::Path;

pub(crate) const SECOND_NS: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Seconds of the story, and when it turns bad.
pub(crate) const LENGTH: u64 = 300;
const TURN: u64 = 230;
/// 2026-11-24 14:04:50 UTC.
pub(crate) const START_US: u64 = 1_795_529_090_000_000;

/// A VM: its name, GiB, and in the bad time the parts in a thousand of its time that it loses and
/// its major faults a second.
struct Cast {
    name: &'static str,
    gib: u64,
    lost: u64,
    majors: u64,
}

const fn vm(name: &'static str, gib: u64, lost: u64, majors: u64) -> Cast {
    Cast { name, gib, lost, majors }
}

const CAST: [Cast; 12] = [
    vm("web-01", 8, 146, 931),
    vm("batch-07", 32, 6, 9),
    vm("ci-03", 4, 39, 131),
    vm("db,1", 16, 6, 41),
    vm("cache-01", 8, 1, 11),
    vm("web-02", 8, 0, 2),
    vm("<b>test</b>", 4, 0, 0),
    vm("größe-東京-テスト", 2, 0, 0),
    vm("a-name-that-is-much-longer-than-any-column-of-the-list", 2, 0, 0),
    vm("web-02", 8, 0, 1),
    vm("mon-01", 2, 0, 0),
    vm("dns-01", 1, 0, 0),
];

fn id(place: usize) -> String {
    format!("{}-{}", 12_900 + place, 4_000 + place)
}

pub(crate) fn run() -> Run {
    let vms = CAST.iter().enumerate().map(|(place, of)| RunVm {
        vm_id: id(place),
        name: of.name.to_owned(),
        pid: 12_900 + place as i32,
        vcpus: Some(4),
        memory_bytes: Some(of.gib * GIB),
        accelerator: Some("kvm".to_owned()),
        first_seen_us: START_US,
        evictions_absent: (of.gib == 1).then(|| "it shares its cgroup with others".to_owned()),
        ..RunVm::default()
    });
    Run {
        host: "kvm-14".to_owned(),
        page_size: 4096,
        evictions: Some(EvictionSight::default()),
        options: Options {
            interval_ns: SECOND_NS,
            slow_faults_ns: Some(2_000_000),
            ..Options::default()
        },
        vms: vms.collect(),
        ..Run::default()
    }
}

/// So many latencies around that, from a third of it to forty times it, few of them long.
fn latencies(count: u64, middle_ns: u64) -> Latencies {
    let mut latencies = Latencies::empty();
    for number in 0..count {
        let part = (number as f64 + 0.5) / count as f64;
        let ns = (middle_ns as f64 * 0.35 / (1.0 - part).powf(0.6)) as u64;
        latencies.record(ns, 1);
        latencies.sum_ns += ns;
        latencies.max_ns = latencies.max_ns.max(ns);
    }
    latencies
}

fn vm_interval(place: usize, second: u64) -> VmInterval {
    let Cast { gib, lost, majors, .. } = CAST[place];
    let is_bad = second >= TURN;
    let (lost, majors) = if is_bad { (lost, majors) } else { (lost / 40, majors / 100) };
    // It comes in waves.
    let wave = 8 + second * 7 % 5;
    let (lost, majors) = (lost * wave / 10, majors * wave / 10);
    let metric = |metric: Metric, latencies| MetricInterval {
        vm: place,
        name: metric.into(),
        coverage: Coverage::Full,
        latencies,
    };
    let waited_ns = lost * 4 * SECOND_NS / 1_000;
    let mut time = Breakdown::new(waited_ns, [0; Part::COUNT], |_| true);
    time.parts_ns[Part::Swapin as usize] = Some(waited_ns * 72 / 100);
    time.parts_ns[Part::Reclaim as usize] = Some(waited_ns * 22 / 100);
    time.parts_ns[Part::Lock as usize] = Some(waited_ns * 3 / 100);
    let swapins =
        Swapins { from_device: [("nvme0n1".to_owned(), majors)].into(), ..Swapins::default() };
    let state = if is_bad && lost > 100 { SwapState::Thrashing } else { SwapState::Healthy };
    let needed = gib * GIB * if place == 0 { 70 } else { 55 } / 100;
    VmInterval {
        vm: place,
        recorded_ns: Some(SECOND_NS),
        metrics: vec![
            metric(Metric::FaultMinor, latencies(majors * 2, 3_000)),
            metric(Metric::FaultMajor, latencies(majors, 561_000)),
        ],
        seen: Seen { counted: majors * 3, kernel: majors * 3 },
        stall: Some(Stall {
            waited_ns,
            vcpu_ns: 4 * SECOND_NS,
            known_ns: SECOND_NS,
            source: StallSource::Windows,
            ..Stall::default()
        }),
        cpu_wait_ns: Some(place as u64 % 3 * SECOND_NS / 250),
        fault_time: time,
        stall_time: Some(time),
        swapins: Some(swapins),
        swap: VmSwap {
            state,
            times: StateTimes::of(state, SECOND_NS),
            rates: (place != 6).then_some(Rates {
                length_ns: SECOND_NS,
                swapped_in: Some(majors as f64 * 7.5),
                ..Rates::default()
            }),
            limit: None,
        },
        configured: Some(gib * GIB),
        memory: Some(MemoryUse {
            resident: needed - if place == 0 && is_bad { 2 * GIB } else { 0 },
            swapped: if place == 0 && is_bad { 2 * GIB } else { 0 },
            ..MemoryUse::default()
        }),
        working_set: Some(WorkingSet {
            range: Range { lower: needed * 9 / 10, upper: needed },
            source: if place % 5 == 4 { Source::Bounds } else { Source::Damon },
            window_s: 10.0,
            cost: 0.002,
        }),
        ..VmInterval::default()
    }
}

fn evictions(second: u64) -> Vec<Eviction> {
    if second < TURN {
        return Vec::new();
    }
    let taken = |victim, class, by: Option<usize>, name: &str, pages| Eviction {
        victim: Some(victim),
        aggressor: Aggressor { class, id: by.map(id).unwrap_or_default(), name: name.to_owned() },
        counts: EvictionCounts { written_pages: pages, ..EvictionCounts::default() },
    };
    vec![
        taken(0, AggressorClass::Vm, Some(1), "batch-07", 6_700),
        taken(0, AggressorClass::Kswapd, None, "kswapd0", 880),
        taken(0, AggressorClass::Vm, Some(0), "web-01", 400),
        taken(2, AggressorClass::Vm, Some(2), "ci-03", 1_050),
        taken(3, AggressorClass::Vm, Some(1), "batch-07", 3_300),
    ]
}

fn host(second: u64) -> HostInterval {
    let is_bad = second >= TURN;
    let grown = second.saturating_sub(180).min(70);
    let available = 20 * GIB - grown * 270 * MIB;
    let state = if is_bad { SwapState::Thrashing } else { SwapState::Healthy };
    let pages = |mib: u64| (mib * MIB / 4096) as f64;
    let rates = Rates {
        length_ns: SECOND_NS,
        swapped_in: Some(if is_bad { pages(28 + second % 9) } else { 0.0 }),
        swapped_out: Some(if is_bad { pages(80 + second % 17) } else { 0.0 }),
        ..Rates::default()
    };
    HostInterval {
        swap: HostSwap {
            state,
            times: StateTimes::of(state, SECOND_NS),
            rates: Some(rates),
            memory: Some(Memory {
                total: 63 * GIB,
                available: Some(available),
                swap_total: 16 * GIB,
                swap_free: 12 * GIB,
            }),
            least_available: Some(available),
            allocated: None,
        },
        overcommit: Some(Overcommit {
            state: if is_bad { OvercommitState::Critical } else { OvercommitState::Safe },
            configured: Some(95 * GIB),
            physical: 63 * GIB,
            capacity: Some(62 * GIB),
            working_sets: Some(Range { lower: 47 * GIB, upper: 52 * GIB }),
            ..Overcommit::default()
        }),
        pressure: HostPressure {
            some_ns: Some(if is_bad { SECOND_NS * (35 + second % 10) / 100 } else { 0 }),
            full_ns: Some(0),
            ..HostPressure::default()
        },
        ..HostInterval::default()
    }
}

pub(crate) fn slow_fault(number: u64) -> SlowFault {
    let second = LENGTH - 4 + number;
    SlowFault {
        vm: 0,
        end_ns: (START_US + second * 1_000_000 - 159_000) * 1_000,
        thread: format!("CPU {number}/KVM"),
        metric: Metric::FaultMajor.into(),
        latency_ns: 2_600_000 << number,
        swap_device: Some("nvme0n1".to_owned()),
        stack: Some("a;do_swap_page;folio_wait_bit_common;io_schedule".to_owned()),
        aggressor: (number != 2).then(|| Aggressor {
            class: AggressorClass::Vm,
            id: id(1),
            name: "batch-07".to_owned(),
        }),
        ..SlowFault::none()
    }
}

pub(crate) fn interval(number: u64) -> Interval {
    let place = Place {
        number,
        start_us: START_US + number * 1_000_000,
        length_ns: SECOND_NS,
        ..Place::default()
    };
    let vms = (0..CAST.len()).map(|vm| vm_interval(vm, number)).collect();
    Interval { place, host: host(number), vms, evictions: evictions(number) }
}

/// A screen at the end of the story.
fn app(look: Look) -> App {
    let objectives = ["web-*:fault.major:p99<2ms", "stall.share<5%"];
    let objectives = objectives.map(|text| Objective::parse(text).unwrap());
    let mut app = App::new(look, objectives.to_vec(), false);
    let run = std::sync::Arc::new(run());
    (0..LENGTH).for_each(|number| app.take(Update::interval(&run, &interval(number))));
    let faults: Vec<SlowFault> = (0..4).map(slow_fault).collect();
    app.take(Update::slow_faults(&run, &faults));
    app
}

const PLAIN: Look = Look { ascii: false, colour: false };

fn press(app: &mut App, codes: &[KeyCode]) -> Ask {
    let key = |code: &KeyCode| app.key(KeyEvent::new(*code, KeyModifiers::NONE));
    codes.iter().map(key).last().unwrap_or(Ask::Nothing)
}

fn text(app: &mut App, columns: u16, rows: u16) -> String {
    let lines = app.lines(columns, rows);
    assert!(lines.len() <= usize::from(rows).max(1), "{} lines", lines.len());
    let line = |line: &ratatui::text::Line<'_>| {
        assert!(line.width() <= columns.into(), "{} columns: {line}", line.width());
        format!("{}\n", line.to_string().trim_end())
    };
    lines.iter().map(line).collect()
}

/// Holds a screen against the one that was committed.
fn compare(name: &str, screen: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/screens").join(name);
    if std::env::var_os("OVERCOMMIT_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, screen).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == screen, "{} differs; now:\n{screen}", path.display());
}

#[test]
fn screens_are_as_they_were() {
    let mut app = app(PLAIN);
    for (columns, rows) in [(120, 40), (80, 24), (40, 12)] {
        compare(&format!("list-{columns}x{rows}.txt"), &text(&mut app, columns, rows));
    }
    press(&mut app, &[KeyCode::Enter]);
    for (columns, rows) in [(120, 40), (80, 24)] {
        compare(&format!("vm-{columns}x{rows}.txt"), &text(&mut app, columns, rows));
    }
    press(&mut app, &[KeyCode::Char('?')]);
    compare("help-80x24.txt", &text(&mut app, 80, 24));
    let ascii = Look { ascii: true, colour: false };
    let screen = text(&mut self::app(ascii), 80, 24);
    assert!(screen.lines().all(|line| line.is_ascii() || line.contains("größe")), "{screen}");
    compare("list-80x24-ascii.txt", &screen);
}

#[test]
fn every_size_is_filled_and_no_line_is_longer() {
    let mut app = app(PLAIN);
    for _ in 0..2 {
        for columns in (1..140).step_by(3) {
            for rows in (1..60).step_by(3) {
                text(&mut app, columns, rows);
            }
        }
        press(&mut app, &[KeyCode::Enter]);
    }
}

#[test]
fn keys_choose_filter_and_sort() {
    let mut app = app(PLAIN);
    let chosen = |app: &mut App| {
        let screen = text(app, 120, 40);
        let line = screen.lines().find(|line| line.starts_with('▸')).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(chosen(&mut app), "web-01");
    press(&mut app, &[KeyCode::Down]);
    assert_eq!(chosen(&mut app), "ci-03");
    press(&mut app, &[KeyCode::Down]);
    assert_eq!(chosen(&mut app), "batch-07", "who took it stands behind those who are hurt");
    assert!(text(&mut app, 80, 24).contains("takes memory from web-01"));
    press(&mut app, &[KeyCode::End, KeyCode::Up, KeyCode::PageUp, KeyCode::Home]);
    assert_eq!(chosen(&mut app), "web-01");
    let filter = ['/', 'd', 'b'].map(KeyCode::Char);
    press(&mut app, &filter);
    assert_eq!(chosen(&mut app), "db,1");
    press(&mut app, &[KeyCode::Backspace, KeyCode::Backspace]);
    // The word of the verdict is looked at too.
    press(&mut app, &['s', 'l', 'o', 'w'].map(KeyCode::Char));
    press(&mut app, &[KeyCode::Enter]);
    assert_eq!(chosen(&mut app), "ci-03");
    press(&mut app, &[KeyCode::Esc, KeyCode::Char('h')]);
    assert_eq!(app.rows().len(), 2);
    press(&mut app, &[KeyCode::Char('h'), KeyCode::Char('s'), KeyCode::Home]);
    assert_eq!(chosen(&mut app), "<b>test</b>");
    press(&mut app, &[KeyCode::Char('S'), KeyCode::Home]);
    assert_eq!(chosen(&mut app), "web-02");
    assert_eq!(press(&mut app, &[KeyCode::Char('q')]), Ask::Quit);
    let control = KeyEvent::new(KeyCode::Char('z'), KeyModifiers::CONTROL);
    assert_eq!(app.key(control), Ask::Suspend);
}

#[test]
fn the_past_is_looked_at_while_the_present_goes_on() {
    let mut app = app(PLAIN);
    press(&mut app, &[KeyCode::Left]);
    assert!(app.is_paused() && text(&mut app, 120, 40).contains("paused, 1 s back"));
    for _ in 0..8 {
        press(&mut app, &[KeyCode::Char('(')]);
    }
    let past = text(&mut app, 120, 40);
    assert!(past.contains("paused, 81 s back") && past.contains("12 VMs: 0 hurt"), "{past}");
    let place = Place {
        number: LENGTH,
        start_us: START_US + LENGTH * 1_000_000,
        length_ns: SECOND_NS,
        ..Place::default()
    };
    let next = Interval { place, ..Interval::default() };
    app.take(Update::interval(&std::sync::Arc::new(run()), &next));
    let still = text(&mut app, 120, 40);
    assert!(still.contains("paused, 82 s back") && still.contains("12 VMs: 0 hurt"), "{still}");
    app.take(Update::Marks(vec![
        Mark { at_us: START_US + 100_500_000, text: "ramp".to_owned() },
        Mark { at_us: START_US + 200_000_000, text: "steady".to_owned() },
    ]));
    press(&mut app, &[KeyCode::Char('0'), KeyCode::Char('[')]);
    let marked = |app: &mut App| text(app, 120, 40).lines().next().unwrap().to_owned();
    assert!(marked(&mut app).contains("[steady]  paused, "), "{}", marked(&mut app));
    press(&mut app, &[KeyCode::Char('[')]);
    assert!(marked(&mut app).contains("[ramp]  paused, "), "{}", marked(&mut app));
    // There is none before it.
    press(&mut app, &[KeyCode::Char('['), KeyCode::Left]);
    assert!(!marked(&mut app).contains('['), "{}", marked(&mut app));
    press(&mut app, &[KeyCode::Char(']')]);
    assert!(marked(&mut app).contains("[ramp]"), "{}", marked(&mut app));
    press(&mut app, &[KeyCode::Char('0')]);
    assert_eq!(press(&mut app, &[KeyCode::Char('m')]), Ask::Mark);
    app.mark(START_US + LENGTH * 1_000_000 + 900_000, |mark| mark.text == "mark 1");
    assert!(marked(&mut app).contains("[mark 1]  live"), "{}", marked(&mut app));
    // Of the past, not of this moment.
    press(&mut app, &[KeyCode::Left]);
    assert_eq!(press(&mut app, &[KeyCode::Char('m')]), Ask::Nothing);
    press(&mut app, &[KeyCode::Char('0')]);
    assert!(!app.is_paused() && text(&mut app, 120, 40).contains("live"));
}

#[test]
fn a_replay_stands_still_at_the_mark_that_was_sought() {
    let mut app = App::new(PLAIN, Vec::new(), true);
    let run = std::sync::Arc::new(run());
    let take = |app: &mut App, numbers: std::ops::RangeInclusive<u64>| {
        numbers.for_each(|number| app.take(Update::interval(&run, &interval(number))));
    };
    let at_us = START_US + 50_500_000;
    app.take(Update::Marks(vec![Mark { at_us, text: "late".to_owned() }]));
    take(&mut app, 0..=9);
    assert_eq!(press(&mut app, &[KeyCode::Char(']')]), Ask::GoTo(at_us as f64 / 1e6));
    app.clear();
    take(&mut app, 45..=49);
    let before = text(&mut app, 120, 40);
    assert!(!app.is_paused() && !before.contains("[late]"), "{before}");
    take(&mut app, 50..=50);
    let there = text(&mut app, 120, 40);
    let clock =
        overcommit_recording::format::text::time_of_day((START_US + 51_000_000) as f64 / 1e6);
    assert!(app.is_paused() && there.contains(&format!("{clock}  [late]")), "{there}");
    // It is the last one that has come, and stays.
    press(&mut app, &[KeyCode::Left, KeyCode::Char(']')]);
    assert!(app.is_paused() && text(&mut app, 120, 40).contains("[late]"));
}
