//! VMs as managers start them: the options that decide, in the shapes that each writes. (libvirt's own
//! test data are read by an end-to-end test.)

use crate::vm::cmdline::CommandLine;

/// A command line, with what it says.
struct Started {
    by: &'static str,
    /// Words apart by spaces.
    line: &'static str,
    name: Option<&'static str>,
    /// `-uuid`, else that of `-smbios`.
    uuid: Option<&'static str>,
    mebibytes: Option<u64>,
    vcpus: Option<u32>,
    accelerator: Option<&'static str>,
}

const STARTED: [Started; 12] = [
    Started {
        by: "Proxmox VE, with memory that can be plugged",
        line: "/usr/bin/kvm -id 117 -name shop,debug-threads=on -no-shutdown \
            -chardev socket,id=qmp,path=/var/run/qemu-server/117.qmp,server=on,wait=off \
            -mon chardev=qmp,mode=control -pidfile /var/run/qemu-server/117.pid -daemonize \
            -smbios type=1,uuid=0B6A5E7C-5F0D-4C39-9D0A-6B8C2B5D1E11 -smp 2,sockets=1,cores=2,maxcpus=2 \
            -nodefaults -cpu host,+aes -m size=1024,slots=255,maxmem=4194304M \
            -object memory-backend-ram,id=ram-node0,size=1024M -numa node,nodeid=0,cpus=0-1,memdev=ram-node0 \
            -object memory-backend-ram,id=mem-dimm0,size=512M -device pc-dimm,id=dimm0,memdev=mem-dimm0,node=0 \
            -readconfig /usr/share/qemu-server/pve-q35-4.0.cfg -machine type=q35+pve0",
        name: Some("shop"),
        uuid: Some("0b6a5e7c-5f0d-4c39-9d0a-6b8c2b5d1e11"),
        mebibytes: Some(1536),
        vcpus: Some(2),
        accelerator: None,
    },
    Started {
        by: "KubeVirt",
        line: "/usr/libexec/qemu-kvm -name guest=billing_db-1,debug-threads=on -S \
            -object {\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"format\":\"raw\",\"file\":\"/var/run/key.aes\"} \
            -machine pc-q35-rhel9.4.0,usb=off,memory-backend=pc.ram -accel kvm -cpu host \
            -m size=262144k -object {\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":268435456} \
            -overcommit mem-lock=off -smp 1,sockets=1,dies=1,cores=1,threads=1 \
            -uuid 7b1b0a2c-96c1-5d0e-8c5b-0c4a4c1f9a10 \
            -smbios type=1,manufacturer=KubeVirt,product=None,uuid=7b1b0a2c-96c1-5d0e-8c5b-0c4a4c1f9a10",
        name: Some("billing_db-1"),
        uuid: Some("7b1b0a2c-96c1-5d0e-8c5b-0c4a4c1f9a10"),
        mebibytes: Some(256),
        vcpus: Some(1),
        accelerator: Some("kvm"),
    },
    Started {
        by: "Nova, two nodes of huge pages",
        line: "/usr/libexec/qemu-kvm -name guest=instance-000001f4,debug-threads=on -S \
            -machine pc-i440fx-rhel7.6.0,accel=kvm,usb=off,dump-guest-core=off -m 4096 -realtime mlock=off \
            -smp 6,sockets=3,cores=1,threads=2 \
            -object memory-backend-file,id=ram-node0,prealloc=yes,mem-path=/dev/hugepages/libvirt/qemu/9,share=yes,size=2147483648,host-nodes=0,policy=bind \
            -numa node,nodeid=0,cpus=0-2,memdev=ram-node0 \
            -object memory-backend-file,id=ram-node1,prealloc=yes,mem-path=/dev/hugepages/libvirt/qemu/9,share=yes,size=2147483648,host-nodes=1,policy=bind \
            -numa node,nodeid=1,cpus=3-5,memdev=ram-node1 -uuid 2d2a3a0e-0f5a-4a8a-8a1c-5b9d4a0b7c21 \
            -smbios type=1,manufacturer=OpenStack,product=Nova,uuid=2d2a3a0e-0f5a-4a8a-8a1c-5b9d4a0b7c21",
        name: Some("instance-000001f4"),
        uuid: Some("2d2a3a0e-0f5a-4a8a-8a1c-5b9d4a0b7c21"),
        mebibytes: Some(4096),
        vcpus: Some(6),
        accelerator: Some("kvm"),
    },
    Started {
        by: "Incus",
        line: "/opt/incus/bin/qemu-system-x86_64 -S -name build -uuid 6d4f1f4e-1a35-4a63-9b3d-2c1c1cf3b1d2 \
            -daemonize -cpu host -nographic -serial chardev:console -nodefaults -no-user-config \
            -sandbox on,obsolete=deny,elevateprivileges=allow,spawn=allow,resourcecontrol=deny \
            -readconfig /run/incus/build/qemu.conf -spice unix=on,disable-ticketing=on \
            -pidfile /run/incus/build/qemu.pid -D /var/log/incus/build/qemu.log",
        name: Some("build"),
        uuid: Some("6d4f1f4e-1a35-4a63-9b3d-2c1c1cf3b1d2"),
        mebibytes: Some(3072),
        vcpus: Some(3),
        accelerator: Some("kvm"),
    },
    Started {
        by: "Kata Containers, with a disk image as persistent memory",
        line: "/opt/kata/bin/qemu-system-x86_64 -name sandbox-5d0f8e -uuid 4f5c9a0a-3f0e-4c8c-9a5a-4d6d7d1a2b3c \
            -machine q35,accel=kvm,nvdimm=on -cpu host,pmu=off -qmp unix:fd=3,server=on,wait=off \
            -m 2048M,slots=10,maxmem=64300M -device nvdimm,id=nv0,memdev=mem0,unarmed=on \
            -object memory-backend-file,id=mem0,mem-path=/opt/kata/share/image,size=268435456,readonly=on \
            -object memory-backend-file,id=dimm1,size=2048M,mem-path=/dev/shm,share=on \
            -numa node,memdev=dimm1 --no-reboot -nographic -smp 1,cores=1,threads=1,sockets=16,maxcpus=16",
        name: Some("sandbox-5d0f8e"),
        uuid: Some("4f5c9a0a-3f0e-4c8c-9a5a-4d6d7d1a2b3c"),
        mebibytes: Some(2048),
        vcpus: Some(1),
        accelerator: Some("kvm"),
    },
    Started {
        by: "oVirt",
        line: "/usr/libexec/qemu-kvm -name guest=engine,debug-threads=on -S -accel kvm -m 16384 \
            -overcommit mem-lock=off -smp 4,maxcpus=64,sockets=16,dies=1,cores=4,threads=1 \
            -uuid 9f5c0a1e-7c35-4f43-b7a2-8a9be1f0c4d5 -no-user-config -nodefaults",
        name: Some("engine"),
        uuid: Some("9f5c0a1e-7c35-4f43-b7a2-8a9be1f0c4d5"),
        mebibytes: Some(16384),
        vcpus: Some(4),
        accelerator: Some("kvm"),
    },
    Started {
        by: "a person, with virtio-mem of which half is asked for",
        line: "qemu-system-x86_64 -enable-kvm -name desk -m 2G,maxmem=6G -smp 4 \
            -object memory-backend-memfd,id=more,size=4G -device virtio-mem-pci,id=vm0,memdev=more,requested-size=2G",
        name: Some("desk"),
        uuid: None,
        mebibytes: Some(4096),
        vcpus: Some(4),
        accelerator: Some("kvm"),
    },
    Started {
        by: "a person, without a name",
        line: "qemu-system-aarch64 -cpu host -M virt -enable-kvm -m 4096 -smp 4 -cdrom live.iso",
        name: None,
        uuid: None,
        mebibytes: Some(4096),
        vcpus: Some(4),
        accelerator: Some("kvm"),
    },
    Started {
        by: "a script with two dashes, and a disk between options",
        line: "kvm -k fr --name pos --smbios type=1,manufacturer=x,uuid=C0FFEE00-0000-4000-8000-00000000CAFE \
            -m 512 -net nic,model=rtl8139 -usb disk.raw -boot c",
        name: Some("pos"),
        uuid: Some("c0ffee00-0000-4000-8000-00000000cafe"),
        mebibytes: Some(512),
        vcpus: None,
        accelerator: None,
    },
    Started {
        by: "CXL, whose persistent memory is no memory of the guest's",
        line: "qemu-system-x86_64 -machine q35,accel=kvm,cxl=on -m 4G,slots=8,maxmem=8G -smp 4 \
            -object memory-backend-ram,size=4G,id=mem0 -numa node,nodeid=0,cpus=0-3,memdev=mem0 \
            -object memory-backend-file,id=pmem0,share=on,mem-path=/tmp/raw,size=256M \
            -device cxl-type3,bus=port,persistent-memdev=pmem0 -M cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
        name: None,
        uuid: None,
        mebibytes: Some(4096),
        vcpus: Some(4),
        accelerator: Some("kvm"),
    },
    Started {
        by: "an older QEMU, with options that are gone",
        line: "qemu-system-x86_64 -no-kvm-irqchip -tdf -name old -localtime -m 1G -smp cpus=2",
        name: Some("old"),
        uuid: None,
        mebibytes: Some(1024),
        vcpus: Some(2),
        accelerator: None,
    },
    Started {
        by: "a wrapper that gives options twice",
        line: "qemu-system-x86_64 -name first -m 1G -smp 1 -accel tcg -name guest=second -m 2G -smp 8 -accel kvm",
        name: Some("second"),
        uuid: None,
        mebibytes: Some(2048),
        vcpus: Some(8),
        // QEMU takes the first that works.
        accelerator: Some("tcg"),
    },
];

/// What Incus writes for that VM.
const INCUS: &str = "[machine]\ngraphics = \"off\"\ntype = \"q35\"\naccel = \"kvm\"\n\
    [memory]\nsize = \"3072M\"\n\
    [smp-opts]\ncpus = \"3\"\nsockets = \"1\"\ncores = \"3\"\nthreads = \"1\"\n\
    [object \"mem0\"]\nqom-type = \"memory-backend-memfd\"\nsize = \"3072M\"\nshare = \"on\"\n\
    [numa]\ntype = \"node\"\nnodeid = \"0\"\nmemdev = \"mem0\"\n";

#[test]
fn each_manager_is_read_as_it_means_it() {
    for started in &STARTED {
        let words = started.line.split_whitespace().map(str::as_bytes);
        let config =
            |path: &[u8]| (path == b"/run/incus/build/qemu.conf").then(|| INCUS.to_owned());
        let line = CommandLine::parse(words, config);
        let text = |value: &Option<Vec<u8>>| {
            value.as_deref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let by = started.by;
        assert_eq!(text(&line.guest).as_deref(), started.name, "{by}");
        assert_eq!(text(&line.uuid.or(line.smbios_uuid)).as_deref(), started.uuid, "{by}");
        assert_eq!(line.memory_bytes.map(|bytes| bytes >> 20), started.mebibytes, "{by}");
        assert_eq!(line.vcpus, started.vcpus, "{by}");
        assert_eq!(text(&line.accelerator).as_deref(), started.accelerator, "{by}");
    }
}
