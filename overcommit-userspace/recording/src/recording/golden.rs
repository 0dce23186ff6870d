//! The files of a recording of which everything is known, held against those in `golden/`:
//! what was written once is read, and written, for good. Where they are to change,
//! `OVERCOMMIT_BLESS=1 cargo test golden` writes them anew.

use crate::compare::compare;
use crate::compare::series::Side;
use crate::model::balloon::{self, Balloon, BalloonState, GuestMemory};
use crate::model::breakdown::Breakdown;
use crate::model::clock::Clocks;
use crate::model::cost::Cost;
use crate::model::coverage::{Coverage, Seen};
use crate::model::evictions::{Aggressor, AggressorClass, Eviction, EvictionCounts};
use crate::model::interval::{
    FileFaults, HostInterval, Interval, MetricInterval, Place, Stall, StallSource, VmInterval,
};
use crate::model::latencies::Latencies;
use crate::model::memory::{
    self, Compressed, Headroom, HostMemory, HostPressure, LeastHeadroom, MemoryUse, NodeSet,
    Overcommit, OvercommitState, Range, WorkingSet,
};
use crate::model::metric::MetricName;
use crate::model::run::{
    BackendChoice, EvictionSight, HostState, NotCounted, Options, Run, RunClocks, RunVm,
};
use crate::model::slow_fault::SlowFault;
use crate::model::start::StartPhase;
use crate::model::state::StateTimes;
use crate::model::swap::{HostSwap, Memory, Rates, SwapArea, SwapState, VmSwap};
use crate::model::swapins::Swapins;
use crate::model::vcpus::VcpuTime;
use crate::model::vm::{Vm, VmId};
use crate::recording::folder::{INTERVALS, RUN_FILE, VMS};
use crate::recording::reader::NONE;
use crate::recording::{Folder, Recording, Span, Writer, logs};
use crate::report::{Format, View, rebuild};
use crate::view::style::plain;
use overcommit_ebpf::layout::{FaultBacking, Loss, Metric, Part};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SECOND_NS: u64 = 1_000_000_000;
const GIB: u64 = 1 << 30;

fn start() -> Clocks {
    Clocks {
        realtime_ns: 1_795_483_994_250_000_000,
        monotonic_ns: 5_000 * SECOND_NS,
        boottime_ns: 6_000 * SECOND_NS,
    }
}

fn at(seconds: u64) -> Clocks {
    let passed = seconds * SECOND_NS;
    let Clocks { realtime_ns, monotonic_ns, boottime_ns } = start();
    Clocks {
        realtime_ns: realtime_ns + passed,
        monotonic_ns: monotonic_ns + passed,
        boottime_ns: boottime_ns + passed,
    }
}

/// What such a run sees, as the first version said it.
fn seen<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let text = fs::read_to_string(first().join("run.json")).unwrap();
    let run: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(run.pointer(path).unwrap().clone()).unwrap()
}

fn run_file() -> Run {
    Run {
        schema: Run::schema(),
        run_id: "01990000-0000-7000-8000-000000000001".to_owned(),
        tool_version: "0.1.0".to_owned(),
        host: "kvm-01".to_owned(),
        kernel: "6.12.0".to_owned(),
        boot_id: "00000000-0000-4000-8000-000000000002".to_owned(),
        recorder: "100-200".to_owned(),
        options: Options {
            interval_ns: SECOND_NS,
            duration_ns: Some(2 * SECOND_NS),
            delay_ns: 500_000_000,
            vm: vec!["web-*".to_owned()],
            wait: true,
            wait_limit_ns: Some(30_000_000_000),
            backend: "auto".to_owned(),
            pid: vec![43],
            slow_faults_ns: Some(1_000_000),
            causes: true,
            slo: vec!["fault.major:p99<2ms".to_owned(), "stall.share<90%".to_owned()],
            labels: [("build".to_owned(), "7".to_owned())].into(),
            command: vec!["./load".to_owned()],
            config: Some("objectives.toml".to_owned()),
            monitor: vec!["web-*=/run/web.qmp".to_owned()],
            guest_stats: true,
            working_set: "damon".to_owned(),
        },
        backend: BackendChoice {
            name: "fentry".to_owned(),
            fault_starts_at: seen("/backend/fault_starts_at"),
            refused: [("none".to_owned(), "a reason".to_owned())].into(),
            hooks: seen("/backend/hooks"),
        },
        clocks: RunClocks { start: start(), steps: vec![at(1)], end: None },
        vms: vec![vm(42, "web, \"01\""), vm(43, "=db")],
        coverage: seen("/coverage"),
        not_counted: NotCounted {
            programs_skipped: [("fentry_fault".to_owned(), 3)].into(),
            vms_without_slot: 1,
            unserved: vec!["late".to_owned()],
            vms_left_out: 0,
        },
        host_state: HostState {
            unreadable: Some("a file is missing".to_owned()),
            discards_absent: Some("no tracefs".to_owned()),
            kills_unreadable: Some("no log".to_owned()),
            swap_areas: Some(vec![SwapArea {
                name: "zram0".to_owned(),
                size_bytes: 2 << 30,
                used_bytes: 1 << 20,
            }]),
        },
        evictions: Some(EvictionSight { written_absent: None, dropped_absent: None }),
        page_size: 4096,
        command_status: Some(7),
        cost: Some(Cost {
            length_ns: 1_750_000_000,
            cpu_ns: 7_000_000,
            resident_peak_bytes: 37 << 20,
            kernel_bytes: 21 << 20,
            programs_ns: Some(1_000_000),
            programs_timed_ns: 100_000_000,
            programs_untimed: None,
        }),
        ..Run::default()
    }
}

fn vm(pid: i32, name: &str) -> RunVm {
    let vm = Vm {
        id: VmId { pid, start_ticks: 4711 },
        uuid: Some(format!("00000000-0000-4000-8000-0000000000{pid}")),
        ..crate::model::vm::tests::vm(name)
    };
    RunVm {
        vcpus_known_by: Some("name".to_owned()),
        vcpu_times: vec![VcpuTime {
            vcpu: 1,
            exits: 2,
            kernel_ns: 3,
            user_ns: 4,
            paused_ns: 5,
            idle_ns: 6,
            stall_ns: 7,
            stall_halted_ns: 8,
            stalls: 9,
            stalls_inverted: 1,
        }],
        swapins: Some(Swapins {
            from_cache: 4,
            from_zswap: 6,
            from_device: [("nvme0n1".to_owned(), 12), ("zram0".to_owned(), 3)].into(),
            without_fault: 10,
        }),
        file_faults: Some(FileFaults { cached: 3, read: 4 }),
        start: StartPhase::all(4_711, &[[[2, 50_000]; 9], [[1, 70_000]; 9], [[0, 0]; 9]]),
        exits_absent: (pid == 43).then(|| "a reason".to_owned()),
        faults_hidden: (pid == 43).then(|| "a reason".to_owned()),
        seen: Seen { counted: 2_000, kernel: 2_001 },
        not_counted: Loss::ALL
            .into_iter()
            .map(|cause| (cause.name().to_owned(), 2 * (cause as u64 % 3)))
            .collect(),
        ..RunVm::found(&vm, &[], &start(), [11, 12])
    }
}

fn latencies(values: &[u64]) -> Latencies {
    let mut latencies = Latencies::empty();
    for ns in values {
        latencies.record(*ns, 1);
        latencies.sum_ns += ns;
        latencies.max_ns = latencies.max_ns.max(*ns);
    }
    latencies.over_range = values.len() as u64 / 4;
    latencies
}

fn vm_interval(vm: usize, number: u64) -> VmInterval {
    let metric = |name: MetricName, values: &[u64]| MetricInterval {
        vm,
        name,
        coverage: if vm == 0 { Coverage::Full } else { Coverage::Partial },
        latencies: latencies(values),
    };
    let (n, many) = (number + 1, 100_000 * (number + 1));
    let ten: Vec<u64> = (1..=10).map(|k| k * many).collect();
    let few: &[u64] = if number == 0 { &[] } else { &[900, 1_000] };
    let parts = |unit| std::array::from_fn(|part| unit * (part as u64 + 1));
    let windows: u64 = ten[2..].iter().sum();
    let kvm_ns = Some(2_000 * (Part::COUNT as u64 + 1));
    let background_ns = Some(2_000 * (Part::COUNT as u64 + 2));
    let time = |total, unit| Breakdown::new(total, parts(unit), |_| true);
    let mut interval = VmInterval {
        vm,
        metrics: vec![
            metric(Metric::FaultMinor.into(), few),
            metric(Metric::FaultMajor.into(), &ten),
            metric(FaultBacking::Anon.into(), few),
            metric(FaultBacking::Swap.into(), &ten),
            metric(Metric::Swapin.into(), &ten[..4]),
            metric(Metric::StallMemory.into(), &ten[2..]),
            metric(Metric::Runq.into(), &[5]),
            metric(MetricName::exit("npf"), &ten[5..]),
        ],
        seen: Seen { counted: 1_000, kernel: 1_000 + number },
        taken_by: [700 * n, 20 * n, 3 * n],
        stall: (vm == 0 || number == 0).then_some(Stall {
            waited_ns: SECOND_NS / 4 * n,
            runq_ns: SECOND_NS / 8 * n,
            vcpu_ns: 2 * SECOND_NS,
            known_ns: SECOND_NS,
            unknown_vcpu_ns: n * 1_000,
            source: if vm == 0 { StallSource::Windows } else { StallSource::Faults },
        }),
        cpu_wait_ns: Some(SECOND_NS / 5 * n),
        recorded_ns: Some(place(number).length_ns),
        stopped_ns: if vm == 1 { SECOND_NS / 4 } else { 0 },
        swapins: Some(Swapins {
            from_cache: 2,
            from_zswap: 3,
            from_device: [("nvme0n1".to_owned(), 4 * n), ("zram0".to_owned(), n)].into(),
            without_fault: 5,
        }),
        file_faults: Some(FileFaults { cached: n, read: 2 }),
        invalidations: Some(std::array::from_fn(|by| n * by as u64)),
        fault_time: time(ten.iter().chain(few).sum(), 1_000),
        stall_time: Some(Breakdown { kvm_ns, background_ns, ..time(windows, 2_000) }),
        not_counted: std::array::from_fn(|cause| cause as u64 % 3),
        ..VmInterval::default()
    };
    // Nothing more is known of the second one in the end.
    if (vm, number) != (1, 1) {
        remember(&mut interval, number);
    }
    interval
}

/// What the host knows of a VM.
fn remember(vm: &mut VmInterval, number: u64) {
    let guest = GuestMemory {
        total: Some(4 * GIB),
        available: Some(3 * GIB),
        free: Some(2 * GIB),
        updated_unix_s: 1_795_483_990 + 4 * number,
        asked_every_s: None,
    };
    vm.swap = VmSwap {
        state: SwapState::Pressure,
        times: StateTimes::of(SwapState::Pressure, place(number).length_ns),
        rates: Some(rates(1.0)),
        limit: Some(5 * GIB),
    };
    vm.configured = Some(8 * GIB);
    vm.balloon = Some(Balloon {
        configured: Some(8 * GIB),
        current: Some(6 * GIB),
        ballooned: 2 * GIB,
        source: balloon::Source::Qmp,
        guest: Some(guest),
    });
    vm.guest_age_s = Some(guest.age_s(&place(number)));
    vm.guest_is_stale = Some(false);
    vm.memory = Some(MemoryUse {
        resident: GIB,
        swapped: GIB / 2,
        hugetlb: GIB / 4,
        overhead: GIB / 8,
        page_cache: GIB / 16,
        huge_pages: GIB / 4,
    });
    vm.working_set = Some(WorkingSet {
        range: Range { lower: GIB, upper: 6 * GIB },
        source: memory::Source::Damon,
        window_s: 0.2,
        cost: 0.015,
    });
    vm.numa_nodes = NodeSet::parse("0,2");
    vm.numa_headroom = Some(Headroom { lower: -5, upper: 6 });
}

fn rates(n: f64) -> Rates {
    Rates {
        length_ns: SECOND_NS,
        swapped_in: Some(100.5 * n),
        swapped_out: Some(50.25 * n),
        stall: Some(0.125 * n),
        io_wait: Some(0.0625 * n),
        available: Some(0.5),
    }
}

fn host(number: u64) -> HostInterval {
    if number == 1 {
        return HostInterval::default();
    }
    HostInterval {
        swap: HostSwap {
            state: SwapState::Thrashing,
            times: StateTimes::of(SwapState::Unknown, 250_000_000)
                .plus(StateTimes::of(SwapState::Pressure, 100_000_000))
                .plus(StateTimes::of(SwapState::Thrashing, 400_000_000)),
            rates: Some(rates(2.0)),
            memory: Some(Memory {
                total: 64 * GIB,
                available: Some(10 * GIB),
                swap_total: 8 * GIB,
                swap_free: 7 * GIB,
            }),
            least_available: Some(9 * GIB),
            allocated: Some(1234.5),
        },
        balloon: BalloonState::Pressure,
        balloon_times: StateTimes::of(BalloonState::Normal, 650_000_000)
            .plus(StateTimes::of(BalloonState::Pressure, 100_000_000)),
        ballooned: Some(3 * GIB),
        overcommit: Some(Overcommit {
            state: OvercommitState::Critical,
            configured: Some(96 * GIB),
            physical: 64 * GIB,
            in_use: Some(0.75),
            capacity: Some(60 * GIB),
            working_sets: Some(Range { lower: 50 * GIB, upper: 70 * GIB }),
            can_grow: Some(20 * GIB),
        }),
        overcommit_times: StateTimes::of(OvercommitState::Critical, 750_000_000),
        least_headroom: Some(LeastHeadroom {
            headroom: Headroom { lower: -11 << 30, upper: 9 << 30 },
            is_measured: true,
        }),
        pressure: HostPressure {
            some_ns: Some(400_000_000),
            full_ns: Some(300_000_000),
            oom_kills: Some(1),
            huge_mappings_split: Some(7),
            reclaimed_ns: Some(750_000_000),
        },
        memory: Some(HostMemory {
            total: 64 * GIB,
            available: Some(10 * GIB),
            hugetlb_pools: 1,
            ksm_saved: 2,
            zfs_arc: 8,
            zfs_arc_evictable: 7,
            zram: Compressed { taken: 3, held: 4 },
            zswap: Compressed { taken: 5, held: 6 },
        }),
    }
}

fn evictions(number: u64) -> Vec<Eviction> {
    let counts = |n| EvictionCounts {
        written_folios: n,
        written_pages: 2 * n,
        dropped_folios: 3 * n,
        dropped_pages: 4 * n,
    };
    let by = |class, id: &str, name: &str| Aggressor { class, id: id.into(), name: name.into() };
    let all = [
        (Some(0), by(AggressorClass::Vm, "43-4711", "=db"), 100),
        (Some(0), by(AggressorClass::Kswapd, "60", "kswapd0"), 40),
        (None, by(AggressorClass::Process, "7", "tar"), 10),
    ];
    let rows = all.into_iter().take(3 - number as usize);
    rows.map(|(victim, aggressor, n)| Eviction { victim, aggressor, counts: counts(n) }).collect()
}

fn place(number: u64) -> Place {
    Place {
        number,
        start_us: start().realtime_ns / 1_000 + number * 750_000,
        offset_ns: number * (SECOND_NS * 3 / 4),
        length_ns: if number == 0 { SECOND_NS * 3 / 4 } else { SECOND_NS },
        partial: number == 0,
        delayed: number == 1,
    }
}

fn interval(number: u64) -> Interval {
    Interval {
        place: place(number),
        vms: (0..2).map(|vm| vm_interval(vm, number)).collect(),
        evictions: evictions(number),
        host: host(number),
    }
}

fn slow_fault() -> SlowFault {
    SlowFault {
        vm: 0,
        end_ns: at(1).realtime_ns,
        tid: 44,
        thread: "CPU 0/KVM".to_owned(),
        metric: Metric::FaultMajor.into(),
        latency_ns: 2_000_000,
        address: 0x7f00_0000_1000,
        backing: Some(FaultBacking::Swap),
        swap_device: Some("nvme0n1".to_owned()),
        stack: Some("do_user_addr_fault;handle_mm_fault".to_owned()),
        guest_address: Some(0x1000),
        aggressor: Some(Aggressor {
            class: AggressorClass::Vm,
            id: "43-4711".to_owned(),
            name: "=db".to_owned(),
        }),
        time: Breakdown::new(2_000_000, [10; Part::COUNT], |_| true),
    }
}

fn record(path: &Path) -> Folder {
    record_run(path, run_file())
}

fn record_run(path: &Path, mut run: Run) -> Folder {
    let folder = Folder::create(path, None).unwrap();
    let mut writer = Writer::create(folder.clone(), &run).unwrap();
    for number in 0..2 {
        run.recorded.intervals = number + 1;
        // One of them ends with the second interval.
        run.vms[1].ended_us = (number == 1).then(|| at(2).realtime_ns / 1_000);
        writer.write(&run, &interval(number)).unwrap();
    }
    writer.write_slow_faults(&run, &[slow_fault()]).unwrap();
    run.clocks.end = Some(at(2));
    writer.write_run(&run).unwrap();
    folder
}

/// What is written now.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/now")
}

/// What the first version wrote.
fn first() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/first")
}

/// Fails unless a file is as it was, or writes it anew.
fn hold(golden: &Path, name: &str, content: &[u8]) {
    let path = golden.join(name);
    if std::env::var_os("OVERCOMMIT_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    }
    let expected = fs::read(&path).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(content), text(&expected), "{name} is not as in {}", path.display());
}

const FILES: [&str; 11] = [
    "run.json",
    "host.csv",
    "vms.csv",
    "intervals.csv",
    "evictions.csv",
    "slow-faults.csv",
    "summary.json",
    "summary.csv",
    "vms/web%2C%20%2201%22/latency.hlog",
    "vms/%3Ddb/latency.hlog",
    "vms/%3Ddb/fault.major.hgrm",
];

/// Those of them that are made of the others, in the recording's folder.
const SUMMARIES: [&str; 2] = ["summary.json", "summary.csv"];

/// Copies a recording without them.
fn copy(golden: &Path, to: &Path) {
    for name in FILES.iter().filter(|name| !SUMMARIES.contains(*name)) {
        let to = to.join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden.join(name), to).unwrap();
    }
}

fn report(folder: &Folder, format: Format) -> String {
    rebuild(folder, &View::whole(format, true)).unwrap().text
}

/// What is written and read back is as it was.
#[test]
fn slow_faults_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = record(&dir.path().join("run"));
    let recording = Recording::open(&folder).unwrap();
    let mut seen = Vec::new();
    recording
        .each_slow_fault(|fault| {
            seen.push(fault.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [slow_fault()]);
}

#[test]
fn files_are_written_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let folder = record(&dir.path().join("run"));
    let text = report(&folder, Format::Text);
    FILES.iter().for_each(|name| hold(&golden(), name, &fs::read(folder.file(name)).unwrap()));
    hold(&golden(), "report.txt", plain(&text).as_bytes());
    assert_eq!(
        report(&folder, Format::Json).as_bytes(),
        fs::read(golden().join("summary.json")).unwrap()
    );
}

/// What the first version wrote is read by every later one, and reported as that does.
#[test]
fn files_are_read_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    copy(&first(), &path);
    let folder = Folder::open(&path).unwrap();
    let text = plain(&report(&folder, Format::Text));
    hold(&first(), "report.txt", text.as_bytes());
    for name in SUMMARIES {
        hold(&first(), name, &fs::read(folder.file(name)).unwrap());
    }
}

/// A recording that was killed, and what one log lost is lost there alone.
#[test]
fn a_log_that_lost_its_tail_takes_nothing_from_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let folder = record(&dir.path().join("run"));
    let mut run = Recording::open(&folder).unwrap().run;
    run.clocks.end = None;
    folder.replace(RUN_FILE, &serde_json::to_vec(&run).unwrap()).unwrap();
    let names: Vec<String> = run.vms.iter().map(logs::name).collect();
    let before: Vec<Vec<u8>> =
        names.iter().map(|name| fs::read(folder.file(name)).unwrap()).collect();
    let [vms, intervals] = [VMS, INTERVALS].map(|name| fs::read(folder.file(name)).unwrap());
    fs::write(folder.file(&names[0]), &before[0][..before[0].len() - 7]).unwrap();
    let torn = [&before[1][..], b"Tag=fault.minor,1.0"].concat();
    fs::write(folder.file(&names[1]), torn).unwrap();
    let mut complete = 0;
    let recording = Recording::open(&folder).unwrap();
    recording
        .each(Span::WHOLE, NONE, |_| {
            complete += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(complete, run.recorded.intervals - 1);
    assert_eq!(fs::read(folder.file(VMS)).unwrap(), vms);
    assert_eq!(fs::read(folder.file(INTERVALS)).unwrap(), intervals);
    let cut = fs::read(folder.file(&names[0])).unwrap();
    assert!(before[0].starts_with(&cut) && cut.ends_with(b"\n"), "{} bytes", cut.len());
    assert_eq!(fs::read(folder.file(&names[1])).unwrap(), before[1]);
}

/// Without it nothing could be read in step, and all would look cut off.
#[test]
fn a_file_without_a_column_that_every_version_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = record(&dir.path().join("run"));
    let text = fs::read_to_string(folder.file(VMS)).unwrap();
    fs::write(folder.file(VMS), text.replacen(",metrics,", ",rows,", 1)).unwrap();
    let recording = Recording::open(&folder).unwrap();
    let error = recording.each(Span::WHOLE, NONE, |_| Ok(())).unwrap_err();
    assert!(format!("{error:#}").contains("no column metrics"), "{error:#}");
}

/// What the first version wrote is compared with what is written now, figure by figure.
#[test]
fn an_older_recording_is_compared_with_a_newer_one() {
    let side = |path: PathBuf| {
        let folder = Folder::open(&path).unwrap();
        Side::read(Recording::open(&folder).unwrap(), Span::WHOLE).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut newer = run_file();
    newer.run_id = "01990000-0000-7000-8000-000000000003".to_owned();
    let newer = record_run(&dir.path().join("run"), newer);
    let comparison = compare(&[side(first())], &[side(newer.path().to_owned())]).unwrap();
    assert_eq!(comparison.unmatched, [""; 0]);
    let differ: Vec<_> =
        comparison.compared.iter().filter(|entry| entry.base != entry.new).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    let metrics: BTreeSet<&str> =
        comparison.compared.iter().map(|entry| entry.metric.as_str()).collect();
    assert!(metrics.contains("fault.major") && !metrics.contains("stall.share"), "{metrics:?}");
    let left_out = comparison.left_out.iter();
    let stall = left_out.filter(|line| line.contains("stall.share: some recordings"));
    assert_eq!(stall.count(), 2, "{:?}", comparison.left_out);
}

#[test]
fn what_of_a_vm_is_not_the_same_on_both_sides_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let open = |folder: &Folder| Side::read(Recording::open(folder).unwrap(), Span::WHOLE).unwrap();
    let base = record(&dir.path().join("base"));
    let mut larger = run_file();
    larger.vms[0].vcpus = Some(9);
    let new = record_run(&dir.path().join("new"), larger);
    let rows = fs::read_to_string(new.file(VMS)).unwrap();
    let raised = rows.replace(&format!(",{},", 5 * GIB), &format!(",{},", 6 * GIB));
    fs::write(new.file(VMS), raised).unwrap();
    let warnings = compare(&[open(&base)], &[open(&new)]).unwrap().warnings;
    let of_vms: Vec<_> = warnings.iter().filter(|warning| warning.contains(": its ")).collect();
    let name = &run_file().vms[0].name;
    assert_eq!(
        of_vms,
        [
            &format!("{name}: its number of vCPUs differs: 2 and 9"),
            &format!("{name}: its memory limit differs: 5.0 GiB and 6.0 GiB"),
        ]
    );
}
