//! The files of a recording of which everything is known, held against those in `golden/`:
//! what was written once is read, and written, for good. Where they are to change,
//! `OVERCOMMIT_BLESS=1 cargo test golden` writes them anew.

use crate::commands::report::{Format, View, rebuild};
use crate::model;
use crate::model::balloon::{Balloon, BalloonState, GuestMemory};
use crate::model::clock::Clocks;
use crate::model::coverage::{Coverage, Seen};
use crate::model::evictions::{Aggressor, AggressorClass, EvictionCounts, EvictionSample};
use crate::model::interval::{
    FileFaults, HostSample, Interval, MetricSample, Stall, StallSource, VmHostSample, VmSample,
};
use crate::model::latencies::Latencies;
use crate::model::memory::{
    Compressed, Headroom, HostMemory, MemoryUse, NodeSet, Overcommit, OvercommitState, Range,
    WorkingSet,
};
use crate::model::metric::MetricName;
use crate::model::name::Name;
use crate::model::run::{
    BackendChoice, EvictionSight, HookState, HostState, NotCounted, Options, RunClocks, RunFile,
};
use crate::model::slow_fault::SlowFault;
use crate::model::swap::{HostSwap, Memory, Rates, SwapState, VmSwap};
use crate::model::swapins::{SwapinCounts, SwapinTotals};
use crate::model::vcpus::VcpuTime;
use crate::model::vm::{Vm, VmId};
use crate::model::vm::tests::vm;
use crate::probes::decide::Backend;
use crate::probes::functions::Purpose;
use crate::probes::sight;
use crate::probes::sight::Sight;
use crate::recording::{Folder, Span, Writer};
use crate::sampler::roster::Member;
use overcommit_ebpf::layout::{self, FaultBacking, Metric, Part, SWAP_DEVICES_MAX};
use std::fs;
use std::path::{Path, PathBuf};

const SECOND_NS: u64 = 1_000_000_000;
/// Bytes of a page of the recorded host.
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

fn sight() -> Sight {
    let hook = |purpose, function: &str| HookState {
        purpose,
        function: Some(function.to_owned()),
        by: Some("fentry".to_owned()),
        missing: None,
    };
    let missing = HookState {
        purpose: Purpose::Zswap,
        function: None,
        by: None,
        missing: Some("no_zswap_load".to_owned()),
    };
    let hooks = vec![
        missing,
        hook(Purpose::Swap, "do_swap_page"),
        hook(Purpose::Userfault, "handle_userfault"),
        hook(Purpose::Drop, "__remove_mapping"),
        hook(Purpose::High, "mem_cgroup_handle_over_high"),
        hook(Purpose::Fault, "handle_mm_fault"),
    ];
    Sight {
        backend: Some(Backend::Fentry),
        hooks,
        exits_absent: None,
        has_apf: true,
        absent: Default::default(),
        has_run_delay: true,
    }
}

fn run_file() -> RunFile {
    RunFile {
        schema: RunFile::schema(),
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
            backend: "auto".to_owned(),
            pid: vec![43],
            slow_faults_ns: Some(1_000_000),
            causes: true,
            slo: vec!["fault.major:p99<2ms".to_owned(), "stall.share<90%".to_owned()],
            labels: [("build".to_owned(), "7".to_owned())].into(),
            command: vec!["./load".to_owned()],
        },
        backend: BackendChoice {
            name: "fentry".to_owned(),
            fault_starts_at: Backend::Fentry.fault_starts_at().to_owned(),
            refused: [("none".to_owned(), "a reason".to_owned())].into(),
            hooks: sight().hooks,
        },
        clocks: RunClocks { start: start(), steps: vec![at(1)], end: None },
        recorded: Default::default(),
        vms: Vec::new(),
        coverage: sight::declared(&sight()),
        not_counted: NotCounted::default(),
        host_state: HostState {
            unreadable: Some("a file is missing".to_owned()),
            discards_absent: Some("no tracefs".to_owned()),
        },
        evictions: Some(EvictionSight { written_absent: None, dropped_absent: None }),
    }
}

/// One of them ends with the second interval.
fn members(number: u64) -> Vec<Member> {
    let member = |pid, name: &str| Member {
        vm: Vm {
            id: VmId { pid, start_ticks: 4711 },
            name: Name::new(name),
            uuid: Some(format!("00000000-0000-4000-8000-0000000000{pid}")),
            ..vm(name)
        },
        first_seen_ns: start().realtime_ns,
        ended_ns: (pid == 43 && number == 1).then(|| at(2).realtime_ns),
        faults_before: [11, 12],
        seen: Seen { counted: 2_000, kernel: 2_001 },
        vcpus_known_by: Some("name"),
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
        swapins: SwapinTotals {
            from_cache: 4,
            from_zswap: 6,
            from_device: [("nvme0n1".to_owned(), 8), ("zram0".to_owned(), 2)].into(),
            without_fault: 10,
        },
        file_faults: FileFaults { cached: 3, read: 4 },
        exits_absent: (pid == 43).then(|| "a reason".to_owned()),
    };
    vec![member(42, "web, \"01\""), member(43, "=db")]
}

fn latencies(values: &[u64]) -> Latencies {
    let mut latencies = Latencies::empty();
    for ns in values {
        latencies.histogram.saturating_record(*ns);
        latencies.sum_ns += ns;
        latencies.max_ns = latencies.max_ns.max(*ns);
    }
    latencies.over_range = values.len() as u64 / 4;
    latencies
}

fn vm_sample(member: usize, number: u64) -> VmSample {
    let sample = |name: MetricName, values: &[u64]| MetricSample {
        name,
        coverage: if member == 0 { Coverage::Full } else { Coverage::Partial },
        latencies: latencies(values),
    };
    let (n, many) = (number + 1, 100_000 * (number + 1));
    let ten: Vec<u64> = (1..=10).map(|k| k * many).collect();
    let mut from_device = [0; SWAP_DEVICES_MAX];
    from_device[..2].copy_from_slice(&[n, 4 * n]);
    VmSample {
        member,
        metrics: vec![
            sample(Metric::FaultMinor.into(), if number == 0 { &[] } else { &[900, 1_000] }),
            sample(Metric::FaultMajor.into(), &ten),
            sample(FaultBacking::Anon.into(), if number == 0 { &[] } else { &[900, 1_000] }),
            sample(FaultBacking::Swap.into(), &ten),
            sample(Metric::Swapin.into(), &ten[..4]),
            sample(Metric::StallMemory.into(), &ten[2..]),
            sample(Metric::Runq.into(), &[5]),
            sample(MetricName::exit("npf"), &ten[5..]),
        ],
        seen: Seen { counted: 1_000, kernel: 1_000 + number },
        taken_by: [700 * n, 20 * n, 3 * n],
        stall: (member == 0 || number == 0).then_some(Stall {
            waited_ns: SECOND_NS / 4 * n,
            vcpu_ns: 2 * SECOND_NS,
            source: if member == 0 { StallSource::Windows } else { StallSource::Faults },
        }),
        swapins: SwapinCounts { from_cache: 2, from_zswap: 3, from_device, without_fault: 5 },
        swapped_out: 77,
        discards: [1, 2],
        parts_ns: std::array::from_fn(|part| 1_000 * (part as u64 + 1)),
        stall_ns: std::array::from_fn(|part| 2_000 * (part as u64 + 1)),
        not_counted: std::array::from_fn(|cause| cause as u64 % 3),
    }
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

fn vm_host(member: usize, number: u64) -> VmHostSample {
    if (member, number) == (1, 1) {
        // Nothing is known of it any more.
        return VmHostSample::default();
    }
    let guest = GuestMemory {
        total: Some(4 * GIB),
        available: Some(3 * GIB),
        free: Some(2 * GIB),
        updated_unix_s: 1_795_483_990 + 4 * number,
    };
    VmHostSample {
        swap: VmSwap { state: SwapState::Pressure, rates: Some(rates(1.0)), limit: Some(5 * GIB) },
        configured: Some(8 * GIB),
        balloon: Some(Balloon {
            configured: Some(8 * GIB),
            current: Some(6 * GIB),
            ballooned: 2 * GIB,
            source: model::balloon::Source::Qmp,
            guest: Some(guest),
        }),
        memory: Some(MemoryUse { resident: GIB, swapped: GIB / 2, hugetlb: GIB / 4 }),
        working_set: Some(WorkingSet {
            range: Range { lower: GIB, upper: 6 * GIB },
            source: model::memory::Source::Damon,
            window_s: 0.2,
            cost: 0.015,
        }),
        numa: Some((
            NodeSet::parse("0,2").unwrap_or_default(),
            Some(Headroom { lower: -5, upper: 6 }),
        )),
    }
}

fn host(number: u64) -> HostSample {
    if number == 1 {
        return HostSample::default();
    }
    HostSample {
        swap: HostSwap {
            state: SwapState::Thrashing,
            rates: Some(rates(2.0)),
            memory: Some(Memory {
                total: 64 * GIB,
                available: Some(10 * GIB),
                swap_total: 8 * GIB,
                swap_free: 7 * GIB,
            }),
            allocated: Some(1234.5),
        },
        balloon: BalloonState::Pressure,
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
        memory: Some(HostMemory {
            total: 64 * GIB,
            available: Some(10 * GIB),
            hugetlb_pools: 1,
            ksm_saved: 2,
            zram: Compressed { taken: 3, held: 4 },
            zswap: Compressed { taken: 5, held: 6 },
        }),
    }
}

fn evictions(number: u64) -> Vec<EvictionSample> {
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
    rows.map(|(victim, aggressor, n)| EvictionSample { victim, aggressor, counts: counts(n) })
        .collect()
}

fn interval(number: u64) -> Interval {
    let length_ns = if number == 0 { SECOND_NS * 3 / 4 } else { SECOND_NS };
    Interval {
        number,
        start_us: start().realtime_ns / 1_000 + number * 750_000,
        offset_ns: number * (SECOND_NS * 3 / 4),
        length_ns,
        partial: number == 0,
        vms: (0..2).map(|member| vm_sample(member, number)).collect(),
        evictions: evictions(number),
        host: host(number),
        vm_hosts: (0..2).map(|member| vm_host(member, number)).collect(),
    }
}

fn slow_fault() -> SlowFault {
    let mut comm = [0; 16];
    comm[..9].copy_from_slice(b"CPU 0/KVM");
    SlowFault {
        fault: layout::SlowFault {
            end_ns: at(1).monotonic_ns,
            latency_ns: 2_000_000,
            address: 0x7f00_0000_1000,
            vm_tgid: 42,
            vm: 3,
            tid: 44,
            metric: Metric::FaultMajor as u32,
            comm,
            parts_ns: [10; Part::COUNT],
            backing: FaultBacking::Swap as u32,
            swap_device: 1,
            stack: 1,
            reserved: 0,
            aggressor: 0,
        },
        metric: Metric::FaultMajor,
        device: Some("nvme0n1".to_owned()),
        guest_address: Some(0x1000),
        stack: Some("do_user_addr_fault;handle_mm_fault".to_owned()),
        aggressor: Some(Aggressor {
            class: AggressorClass::Vm,
            id: "43-4711".to_owned(),
            name: "=db".to_owned(),
        }),
    }
}

fn record(path: &Path) -> Folder {
    let mut writer = Writer::create(Folder::create(path, None).unwrap(), run_file()).unwrap();
    let folder = writer.folder().clone();
    let not_counted = NotCounted {
        programs_skipped: [("fentry_fault".to_owned(), 3)].into(),
        vms_without_slot: 1,
    };
    for number in 0..2 {
        let members = members(number);
        let coverage = sight::declared(&sight());
        writer.write(&interval(number), &members, not_counted.clone(), coverage).unwrap();
    }
    writer.write_slow_faults(&members(1), vec![slow_fault()], &at(2)).unwrap();
    writer.finish(at(2), not_counted).unwrap();
    folder
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Fails unless a file is as it was, or writes it anew.
fn hold(name: &str, content: &[u8]) {
    let path = golden().join(name);
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

fn report(folder: &Folder, format: Format) -> String {
    let view = View { format, span: Span::WHOLE, objectives: Vec::new() };
    rebuild(folder, &view).unwrap().text
}

#[test]
fn files_are_written_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let folder = record(&dir.path().join("run"));
    let text = report(&folder, Format::Text);
    FILES.iter().for_each(|name| hold(name, &fs::read(folder.file(name)).unwrap()));
    hold("report.txt", text.as_bytes());
    assert_eq!(
        report(&folder, Format::Json).as_bytes(),
        fs::read(golden().join("summary.json")).unwrap()
    );
}

/// What an earlier version wrote gives the same report.
#[test]
fn files_are_read_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("run");
    let summaries = ["summary.json", "summary.csv"];
    for name in FILES.iter().filter(|name| !summaries.contains(*name)) {
        let to = copy.join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden().join(name), to).unwrap();
    }
    let folder = Folder::open(&copy);
    assert_eq!(
        report(&folder, Format::Text),
        fs::read_to_string(golden().join("report.txt")).unwrap()
    );
    for name in summaries {
        assert_eq!(fs::read(folder.file(name)).unwrap(), fs::read(golden().join(name)).unwrap());
    }
}
