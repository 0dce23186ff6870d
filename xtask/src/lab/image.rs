//! What the lab boots: a kernel, and an initramfs with the modules that it needs
//! to share this machine's root.

use crate::lab::kernels::Packages;
use crate::setup::show;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::{payload, root};

/// Modules that a lab loads.
pub(crate) struct ModuleSet {
    /// Behind the name of the folder where they are unpacked.
    suffix: &'static str,
    /// In the order in which they are loaded, each with what it depends on; one that is built in, or
    /// that this kernel lacks, is left out.
    modules: &'static [&'static str],
    /// Without these there is no lab.
    needed: &'static [&'static str],
}

/// For what QEMU gives, and KVM on AMD.
pub(crate) const AMD: ModuleSet = ModuleSet {
    suffix: "",
    modules: &[
        "virtio_pci",
        "9pnet_virtio",
        "9p",
        "overlay",
        "virtio_blk",
        "virtio_balloon",
        "virtio_console",
        "vmw_vsock_virtio_transport",
        "vhost_vsock",
        "vsock_loopback",
        "zram",
        "lz4_compress",
        "lzo_rle",
        "lzo",
        "zbud",
        "kvm_amd",
    ],
    needed: &["9pnet_virtio", "9p", "zram", "kvm_amd"],
};

/// For what Bochs gives, and KVM on Intel.
pub(crate) const INTEL: ModuleSet = ModuleSet {
    suffix: "-intel",
    modules: &[
        "ata_piix",
        "sd_mod",
        "crc32c_generic",
        "ext4",
        "zram",
        "lz4_compress",
        "lzo_rle",
        "lzo",
        "kvm_intel",
    ],
    needed: &["ata_piix", "ext4", "zram", "kvm_intel"],
};
/// For what QEMU gives on arm64, whose kernels have KVM built in.
pub(crate) const ARM64: ModuleSet = ModuleSet {
    suffix: "",
    modules: &[
        "virtio_pci",
        "9pnet_virtio",
        "9p",
        "overlay",
        "virtio_blk",
        "virtio_console",
        "vmw_vsock_virtio_transport",
        "vhost_vsock",
        "vsock_loopback",
        "zram",
        "lz4_compress",
        "lzo_rle",
        "lzo",
    ],
    needed: &["9pnet_virtio", "9p", "zram"],
};

/// MiB that a Linux guest in the lab walks.
const GUEST_WALK: u64 = 64;
/// The mark of a whole folder: the modules that were looked for.
const UNPACKED: &str = "unpacked";

/// A kernel that can be booted.
pub(crate) struct Image {
    /// `uname -r`
    pub(crate) release: String,
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// Its modules, in a folder with the list `order`.
    modules: PathBuf,
}

/// Takes the kernel and the modules that are needed out of the packages, once.
///
/// # Errors
/// The packages hold no kernel, or lack a module.
pub(crate) fn unpack(packages: &Packages, set: &ModuleSet, cache: &Path) -> Result<Image> {
    let name = packages.files.iter().filter_map(|file| file.file_stem()).next();
    let mut name = name.context("a kernel of no packages")?.to_owned();
    name.push(set.suffix);
    let dir = cache.join("unpacked").join(name);
    // Another version of ours may have taken out others.
    let unpacked = fs::read_to_string(dir.join(UNPACKED)).unwrap_or_default();
    if unpacked != set.modules.join(" ") {
        let tree = cache.join("unpacking");
        let _ = fs::remove_dir_all(&tree);
        for package in &packages.files {
            show(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree))?;
        }
        let unpacked = pick(&tree, set, &dir);
        fs::remove_dir_all(&tree)?;
        unpacked?;
    }
    Ok(Image {
        release: fs::read_to_string(dir.join("release"))?,
        kernel: dir.join("vmlinuz"),
        modules: dir.join("modules"),
    })
}

fn pick(tree: &Path, set: &ModuleSet, dir: &Path) -> Result<()> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| tree.join(place));
    let lib = places.into_iter().find(|place| place.exists()).context("no modules in it")?;
    let mut releases = fs::read_dir(&lib)?;
    let release = releases.next().context("no kernel in it")??.file_name();
    let release = release.to_string_lossy().into_owned();
    let kernels =
        [tree.join(format!("boot/vmlinuz-{release}")), lib.join(&release).join("vmlinuz")];
    let kernel = kernels.iter().find(|path| path.exists()).context("no vmlinuz in it")?;
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir.join("modules"))?;
    fs::copy(kernel, dir.join("vmlinuz"))?;
    // depmod looks below lib/modules alone.
    if !tree.join("lib/modules").exists() {
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    }
    testbed::run(Command::new("depmod").arg("-b").arg(tree).arg(&release))?;
    let lib = lib.join(&release);
    let order = load_order(&lib, set)?;
    let mut names = String::new();
    for module in &order {
        let file = Path::new(module).file_name().context("a module without a name")?;
        let name = file.to_string_lossy().trim_end_matches(".xz").to_owned();
        let target = dir.join("modules").join(&name);
        decompress(&lib.join(module), &target)?;
        names += &format!("{name}\n");
    }
    fs::write(dir.join("modules/order"), names)?;
    fs::write(dir.join("release"), release)?;
    Ok(fs::write(dir.join(UNPACKED), set.modules.join(" "))?)
}

/// Files of the modules, each after those that it needs.
fn load_order(lib: &Path, set: &ModuleSet) -> Result<Vec<String>> {
    let dependencies = fs::read_to_string(lib.join("modules.dep"))?;
    // Not every release has the list.
    let builtin = fs::read_to_string(lib.join("modules.builtin")).unwrap_or_default();
    let mut order: Vec<String> = Vec::new();
    for module in set.modules {
        let is_it = |path: &str| {
            let file = path.rsplit('/').next().unwrap_or(path);
            let stem = file.split('.').next().unwrap_or(file);
            stem.replace('-', "_") == *module
        };
        let line = dependencies.lines().find(|line| line.split(':').next().is_some_and(is_it));
        let Some((file, needs)) = line.and_then(|line| line.split_once(':')) else {
            let there = builtin.lines().any(is_it) || !set.needed.contains(module);
            ensure!(there, "this kernel has no module {module}");
            continue;
        };
        // modules.dep names the deepest last.
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

fn decompress(module: &Path, target: &Path) -> Result<()> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        fs::copy(module, target).with_context(|| format!("cannot copy {}", module.display()))?;
        return Ok(());
    }
    show(Command::new("xz").arg("-dc").arg(module).stdout(fs::File::create(target)?))
}

/// Packs the initramfs; gives its file.
///
/// # Errors
/// cpio is missing or fails.
pub(crate) fn initramfs(image: &Image, busybox: &Path, work: &Path) -> Result<PathBuf> {
    let tree = work.join("initramfs");
    let _ = fs::remove_dir_all(&tree);
    for dir in ["bin", "proc", "sys", "dev", "lower", "upper", "root", "modules"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy(busybox, tree.join("bin/busybox"))?;
    fs::copy(root().join("tests/lab/init"), tree.join("init"))?;
    for entry in fs::read_dir(&image.modules)? {
        let entry = entry?;
        fs::copy(entry.path(), tree.join("modules").join(entry.file_name()))?;
    }
    let file = work.join("initramfs.cpio");
    pack(&tree, &file)?;
    Ok(file)
}

/// Packs the initramfs of a Linux guest in the lab; gives its file.
///
/// # Errors
/// The assembler or cpio is missing or fails.
pub(crate) fn guest_initramfs(work: &Path) -> Result<PathBuf> {
    let tree = work.join("guest");
    fs::create_dir_all(&tree)?;
    fs::copy(payload::init(GUEST_WALK)?, tree.join("init"))?;
    let file = work.join("guest.cpio");
    pack(&tree, &file)?;
    Ok(file)
}

fn pack(tree: &Path, file: &Path) -> Result<()> {
    let archive = fs::File::create(file)?;
    let mut find =
        Command::new("find").arg(".").current_dir(tree).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--quiet", "--owner=0:0"]);
    show(cpio.current_dir(tree).stdin(names).stdout(archive))?;
    ensure!(find.wait()?.success(), "find failed in {}", tree.display());
    Ok(())
}
