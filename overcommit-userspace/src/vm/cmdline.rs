//! QEMU's command line, as QEMU reads it.
//!
//! An option is `-name` or `--name`; its argument is the next word, whatever it
//! begins with (`qemu_init`, system/vl.c). Arguments made of `key=value` pairs
//! are separated by commas, a comma in a value is written twice, and the first
//! pair may leave out its key (`opts_parse`, util/qemu-option.c).

use crate::vm::channels::ChannelDevices;
use crate::vm::chardev::Sockets;
use crate::vm::memory_devices::MemoryDevices;
use crate::vm::monitor::Monitors;
use crate::vm::options::{is_on, pairs, sections, size, value};
use overcommit_recording::model::balloon::LARGEST;
use overcommit_recording::model::vm::{Channels, Monitor, Plugged};

/// Options that take no argument, over all versions since QEMU 2.0
/// (qemu-options.hx, those without `HAS_ARG`). All others take one.
const WITHOUT_ARGUMENT: &[&[u8]] = &[
    b"S",
    b"alt-grab",
    b"async-teardown",
    b"audio-help",
    b"ctrl-grab",
    b"curses",
    b"daemonize",
    b"enable-fips",
    b"enable-kvm",
    b"enable-sync-profile",
    b"full-screen",
    b"h",
    b"help",
    b"jitdump",
    b"localtime",
    b"mem-prealloc",
    b"no-acpi",
    b"no-fd-bootchk",
    b"no-frame",
    b"no-hpet",
    b"no-kvm",
    b"no-kvm-irqchip",
    b"no-kvm-pit",
    b"no-kvm-pit-reinjection",
    b"no-quit",
    b"no-reboot",
    b"no-shutdown",
    b"no-user-config",
    b"nodefaults",
    b"nodefconfig",
    b"nographic",
    b"old-param",
    b"one-insn-per-tb",
    b"only-migratable",
    b"perfmap",
    b"portrait",
    b"preconfig",
    b"s",
    b"sdl",
    b"semihosting",
    b"show-cursor",
    b"singlestep",
    b"snapshot",
    b"std-vga",
    b"tdf",
    b"usb",
    b"version",
    b"virtfs_synth",
    b"win2k-hack",
    b"xen-attach",
    b"xen-create",
    b"xen-domid-restrict",
];

/// The unit of `-m` without a suffix, as a power of two (`qemu_strtosz_MiB`).
const MEBIBYTES: u32 = 20;

/// Bytes of an argument of which words are kept.
pub(super) const ARGUMENT_MAX: usize = 1024;

/// Files of options that are read: managers give one.
const CONFIG_FILES: usize = 2;

/// Options that are looked for: an option that is not known and stands before one of them takes no
/// argument.
const LOOKED_FOR: [&[u8]; 9] =
    [b"name", b"uuid", b"id", b"smbios", b"m", b"smp", b"accel", b"machine", b"M"];

/// What overcommit wants to know from the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `-name guest=`
    pub guest: Option<Vec<u8>>,
    /// `-name process=`
    pub process: Option<Vec<u8>>,
    /// `-name debug-threads=`: whether threads carry telling names.
    pub debug_threads: bool,
    /// `-uuid`
    pub uuid: Option<Vec<u8>>,
    /// `-smbios type=1,uuid=`: what the guest sees; all that Proxmox gives.
    pub smbios_uuid: Option<Vec<u8>>,
    /// `-id`, which only Proxmox's QEMU has: its number for the VM.
    pub id: Option<Vec<u8>>,
    /// The socket through which a micro VM is told what to do.
    pub api_socket: Option<Vec<u8>>,
    /// `-m` and what is plugged in beside it, in bytes.
    pub memory_bytes: Option<u64>,
    /// What of that is plugged in.
    pub plugged: Plugged,
    /// `-smp`: vCPUs present at the start.
    pub vcpus: Option<u32>,
    /// `-accel`, `-enable-kvm`, `-machine accel=`: the first choice.
    pub accelerator: Option<Vec<u8>>,
    /// `-machine`: its type.
    pub machine: Option<Vec<u8>>,
    /// Whether it serves a guest of Xen, whose memory is not its own.
    pub is_of_xen: bool,
    /// `-qmp`, and `-mon` in control mode: where it can be asked.
    pub monitors: Vec<Monitor>,
    /// By which ways its guest can reach us.
    pub channels: Channels,
}

impl CommandLine {
    /// Reads the words of a command line, the program's own name first. `config` reads a file
    /// that `-readconfig` names.
    ///
    /// Later options win over earlier ones, key by key, as in QEMU. What cannot
    /// be understood is left out: a foreign command line is no reason to fail.
    pub fn parse<'a>(
        words: impl IntoIterator<Item = &'a [u8]>,
        config: impl Fn(&[u8]) -> Option<String>,
    ) -> Self {
        let mut line = Self::default();
        let mut devices = Devices::default();
        let mut words = words.into_iter().skip(1).peekable();
        let mut files = 0;
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix(b"-") else {
                continue; // a disk image
            };
            let option = option.strip_prefix(b"-").unwrap_or(option);
            if WITHOUT_ARGUMENT.contains(&option) {
                line.switch(option);
                continue;
            }
            let is_looked_for = |word: &[u8]| {
                let option = word.strip_prefix(b"-");
                option.is_some_and(|o| LOOKED_FOR.contains(&o.strip_prefix(b"-").unwrap_or(o)))
            };
            let takes = |next: &&[u8]| is_looked_for(word) || !is_looked_for(next);
            let Some(argument) = words.next_if(takes) else { continue };
            line.option(option, argument);
            devices.option(option, argument);
            if option == b"readconfig" && files < CONFIG_FILES {
                files += 1;
                for (option, argument) in sections(&config(argument).unwrap_or_default()) {
                    line.option(&option, &argument);
                    devices.option(&option, &argument);
                }
            }
        }
        line.monitors = devices.monitors.found(&devices.sockets);
        line.channels = devices.channels.found(&devices.sockets);
        line.plugged = devices.memory.plugged();
        let Plugged { dimms, virtio_mem, .. } = line.plugged;
        let all = |base: u64| base.checked_add(dimms)?.checked_add(virtio_mem);
        line.memory_bytes = line.memory_bytes.and_then(all).filter(|bytes| *bytes <= LARGEST);
        line
    }

    fn switch(&mut self, option: &[u8]) {
        match option {
            b"enable-kvm" => self.accelerator = Some(b"kvm".to_vec()),
            b"xen-attach" | b"xen-create" => self.is_of_xen = true,
            _ => {}
        }
    }

    fn option(&mut self, option: &[u8], argument: &[u8]) {
        match option {
            b"name" => self.name(argument),
            b"uuid" => self.uuid = Some(bounded(argument).to_ascii_lowercase()),
            b"id" => self.id = Some(bounded(argument).to_vec()),
            b"smbios" => self.smbios(argument),
            b"xen-domid" => self.is_of_xen = true,
            b"m" => {
                if let Some(text) = value(&pairs(argument, b"size"), b"size") {
                    self.memory_bytes = size(&text, MEBIBYTES).or(self.memory_bytes);
                }
            }
            b"smp" => self.vcpus = vcpus(&pairs(argument, b"cpus")).or(self.vcpus),
            // The first -accel that works is used; the process's own file
            // descriptors tell which one that was.
            b"accel" if self.accelerator.is_none() => {
                self.accelerator = value(&pairs(bounded(argument), b"accel"), b"accel");
            }
            b"machine" | b"M" => {
                let pairs = pairs(bounded(argument), b"type");
                self.machine = value(&pairs, b"type").or(self.machine.take());
                if let Some(accelerators) = value(&pairs, b"accel") {
                    let first = accelerators.split(|byte| *byte == b':').next();
                    self.accelerator = first.map(<[u8]>::to_vec);
                }
            }
            _ => {}
        }
    }

    /// Type 1 is the system's information, with its uuid.
    fn smbios(&mut self, argument: &[u8]) {
        let pairs = pairs(bounded(argument), b"file");
        if value(&pairs, b"type").as_deref() == Some(b"1") {
            let uuid = value(&pairs, b"uuid").map(|uuid| uuid.to_ascii_lowercase());
            self.smbios_uuid = uuid.or(self.smbios_uuid.take());
        }
    }

    fn name(&mut self, argument: &[u8]) {
        for (key, value) in pairs(bounded(argument), b"guest") {
            match key.as_slice() {
                b"guest" => self.guest = Some(value),
                b"process" => self.process = Some(value),
                b"debug-threads" => self.debug_threads = is_on(&value),
                _ => {}
            }
        }
    }
}

/// What is described by several options together.
#[derive(Default)]
struct Devices {
    sockets: Sockets,
    monitors: Monitors,
    channels: ChannelDevices,
    memory: MemoryDevices,
}

impl Devices {
    fn option(&mut self, option: &[u8], argument: &[u8]) {
        self.sockets.option(option, argument);
        self.monitors.option(option, argument);
        self.channels.option(option, argument);
        self.memory.option(option, argument);
    }
}

/// As much of an argument as is kept of it: anybody may write anything there.
fn bounded(argument: &[u8]) -> &[u8] {
    &argument[..argument.len().min(ARGUMENT_MAX)]
}

fn number(pairs: &[(Vec<u8>, Vec<u8>)], key: &[u8]) -> Option<u32> {
    str::from_utf8(&value(pairs, key)?).ok()?.parse().ok()
}

/// As `machine_parse_smp_config` (hw/core/machine-smp.c): `cpus`, else
/// `maxcpus`, else the product of the topology.
fn vcpus(pairs: &[(Vec<u8>, Vec<u8>)]) -> Option<u32> {
    let given = number(pairs, b"cpus").or_else(|| number(pairs, b"maxcpus"));
    given.filter(|cpus| *cpus > 0).or_else(|| {
        let levels: [&[u8]; 8] = [
            b"drawers",
            b"books",
            b"sockets",
            b"dies",
            b"clusters",
            b"modules",
            b"cores",
            b"threads",
        ];
        let given: Vec<u32> = levels.iter().filter_map(|level| number(pairs, level)).collect();
        let product = given.iter().try_fold(1u32, |product, n| product.checked_mul(*n));
        product.filter(|_| !given.is_empty()).filter(|cpus| *cpus > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(words: &[&str]) -> CommandLine {
        let program: &[u8] = b"qemu-system-x86_64";
        let words = words.iter().map(|word| word.as_bytes());
        CommandLine::parse([program].into_iter().chain(words), |_| None)
    }

    #[test]
    fn libvirts_command_line() {
        let line = parse(&[
            "-name",
            "guest=web-01,debug-threads=on",
            "-S",
            "-machine",
            "pc-i440fx-7.2,usb=off,dump-guest-core=off",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "size=8388608k,slots=16,maxmem=16G",
            "-overcommit",
            "mem-lock=off",
            "-smp",
            "4,maxcpus=8,sockets=8,cores=1,threads=1",
            "-uuid",
            "5C6A9D3E-0000-4444-8888-ABCDEFABCDEF",
            "-no-user-config",
            "-nodefaults",
        ]);
        assert_eq!(line.guest.as_deref(), Some(&b"web-01"[..]));
        assert!(line.debug_threads);
        assert_eq!(line.memory_bytes, Some(8 << 30));
        assert_eq!(line.vcpus, Some(4));
        assert_eq!(line.accelerator.as_deref(), Some(&b"kvm"[..]));
        assert_eq!(line.uuid.as_deref(), Some(&b"5c6a9d3e-0000-4444-8888-abcdefabcdef"[..]));
        assert_eq!(line.machine.as_deref(), Some(&b"pc-i440fx-7.2"[..]));
    }

    #[test]
    fn proxmoxs_command_line() {
        let line = parse(&[
            "-id",
            "100",
            "-name",
            "web,debug-threads=on",
            "-daemonize",
            "-smbios",
            "type=1,uuid=7B10D7AF-B932-4C66-B2C3-3996152EC465",
            "-smbios",
            "type=11,value=x",
        ]);
        assert_eq!(line.id.as_deref(), Some(&b"100"[..]));
        assert_eq!(line.guest.as_deref(), Some(&b"web"[..]));
        let uuid = &b"7b10d7af-b932-4c66-b2c3-3996152ec465"[..];
        assert_eq!((line.uuid, line.smbios_uuid.as_deref()), (None, Some(uuid)));
    }

    #[test]
    fn names() {
        assert_eq!(parse(&["-name", "plain"]).guest.as_deref(), Some(&b"plain"[..]));
        assert_eq!(parse(&["-name", "a,,b"]).guest.as_deref(), Some(&b"a,b"[..]));
        assert_eq!(parse(&["--name", "guest=x=y"]).guest.as_deref(), Some(&b"x=y"[..]));
        let line = parse(&["-name", "vm,process=qemu-vm,debug-threads"]);
        assert_eq!(line.guest.as_deref(), Some(&b"vm"[..]));
        assert_eq!(line.process.as_deref(), Some(&b"qemu-vm"[..]));
        assert!(line.debug_threads);
        assert!(!parse(&["-name", "vm,nodebug-threads"]).debug_threads);
        assert_eq!(
            parse(&["-name", "one", "-name", "debug-threads=on"]).guest.as_deref(),
            Some(&b"one"[..])
        );
    }

    #[test]
    fn an_argument_is_not_an_option() {
        let line = parse(&["-append", "-name", "-kernel", "x", "-name", "real"]);
        assert_eq!(line.guest.as_deref(), Some(&b"real"[..]));
        let line = parse(&["disk.img", "-nographic", "-name", "real"]);
        assert_eq!(line.guest.as_deref(), Some(&b"real"[..]));
    }

    #[test]
    fn a_file_of_options_counts_where_it_is_named() {
        let file = "[memory]\nsize = \"1024M\"\n[smp-opts]\ncpus = \"4\"\n\
            [machine]\ntype = \"q35\"\naccel = \"kvm\"\n\
            [chardev \"monitor\"]\nbackend = \"socket\"\npath = \"/run/qmp\"\nserver = \"on\"\n\
            [mon]\nchardev = \"monitor\"\nmode = \"control\"\n";
        let words: [&[u8]; 5] = [b"q", b"-name", b"c1", b"-readconfig", b"/run/c1/qemu.conf"];
        let read = |path: &[u8]| (path == b"/run/c1/qemu.conf").then(|| file.to_owned());
        let line = CommandLine::parse(words, read);
        assert_eq!((line.memory_bytes, line.vcpus), (Some(1 << 30), Some(4)));
        assert_eq!(line.accelerator.as_deref(), Some(&b"kvm"[..]));
        assert_eq!(line.monitors, [Monitor::Socket("/run/qmp".into())]);
        let unread = CommandLine::parse(words, |_| None);
        assert_eq!((unread.guest.as_deref(), unread.vcpus), (Some(&b"c1"[..]), None));
    }

    #[test]
    fn an_option_that_is_not_known_takes_no_option_with_it() {
        let line = parse(&["-a-later-switch", "-name", "web", "-m", "2G"]);
        assert_eq!((line.guest.as_deref(), line.memory_bytes), (Some(&b"web"[..]), Some(2 << 30)));
        assert_eq!(parse(&["-name", "-m"]).guest.as_deref(), Some(&b"-m"[..]));
        assert_eq!(parse(&["--no-api", "--id", "vm1"]).id.as_deref(), Some(&b"vm1"[..]));
        assert!(parse(&["-xen-domid", "31", "-m", "size=504"]).is_of_xen);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("8G", 8 << 30),
            ("512", 512 << 20),
            ("1.5G", 3 << 29),
            ("1048576k", 1 << 30),
            ("4096b", 4096),
            ("size=2T", 2 << 40),
            ("256,maxmem=1G", 256 << 20),
        ] {
            assert_eq!(parse(&["-m", text]).memory_bytes, Some(bytes), "{text}");
        }
        for text in ["", "G", "8X", "99999999999E", "16E", "1025T", "-1", "1.2.3G"] {
            assert_eq!(parse(&["-m", text]).memory_bytes, None, "{text}");
        }
    }

    #[test]
    fn vcpu_counts() {
        for (text, vcpus) in [
            ("4", Some(4)),
            ("cpus=2,maxcpus=8", Some(2)),
            ("sockets=2,cores=4,threads=2", Some(16)),
            ("maxcpus=6", Some(6)),
            ("sockets=99999,cores=99999", None),
            ("0", None),
            ("x", None),
        ] {
            assert_eq!(parse(&["-smp", text]).vcpus, vcpus, "{text}");
        }
    }

    #[test]
    fn accelerators() {
        assert_eq!(parse(&["-enable-kvm"]).accelerator.as_deref(), Some(&b"kvm"[..]));
        assert_eq!(
            parse(&["-machine", "q35,accel=kvm:tcg"]).accelerator.as_deref(),
            Some(&b"kvm"[..])
        );
        assert_eq!(
            parse(&["-accel", "tcg,thread=single"]).accelerator.as_deref(),
            Some(&b"tcg"[..])
        );
        assert_eq!(parse(&["-M", "none"]).machine.as_deref(), Some(&b"none"[..]));
    }

    /// A value as a caller of QEMU has to write it.
    fn quoted(value: &[u8]) -> Vec<u8> {
        let mut quoted = Vec::new();
        for &byte in value {
            quoted.push(byte);
            if byte == b',' {
                quoted.push(byte);
            }
        }
        quoted
    }

    proptest! {
        #[test]
        fn never_panics(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12)) {
            CommandLine::parse(words.iter().map(Vec::as_slice), |_| None);
        }

        #[test]
        fn never_panics_on_an_argument(option in "-(name|m|smp|uuid|accel|machine)",
                                       argument in proptest::collection::vec(any::<u8>(), 0..60)) {
            CommandLine::parse([&b"qemu"[..], option.as_bytes(), &argument], |_| None);
        }

        #[test]
        fn names_come_back(name in proptest::collection::vec(1u8..=255, 1..40), debug in any::<bool>()) {
            let mut argument = b"guest=".to_vec();
            argument.extend(quoted(&name));
            if debug {
                argument.extend(b",debug-threads=on");
            }
            let line = CommandLine::parse([&b"qemu"[..], b"-name", &argument], |_| None);
            prop_assert_eq!(line.guest.as_deref(), Some(&name[..]));
            prop_assert_eq!(line.debug_threads, debug);
        }
    }
}
