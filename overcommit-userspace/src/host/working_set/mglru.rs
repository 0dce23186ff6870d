//! The generations of the multi-generational LRU: an ageing walks the page tables of a
//! memory cgroup and moves the pages that were touched to the youngest generation
//! (`try_to_inc_max_seq`, mm/vmscan.c). Two of them, and what lies in the generations
//! since the first was touched in between.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The generations of the host's memory cgroups.
#[derive(Clone, Debug)]
pub struct Mglru {
    file: PathBuf,
    page_size: u64,
}

/// A memory cgroup's pages on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    memcg: u64,
    node: u64,
    youngest: u64,
    /// Pages of the generations that were asked for.
    pages: u64,
}

/// A cgroup that was aged: its nodes, each with its youngest generation since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aged(Vec<(u64, u64)>);

/// Why it cannot be used.
///
/// # Errors
/// The kernel has none, it is switched off, or the walk does not see what guests touch.
pub fn check(sys: &Path, sees_guests: bool) -> Result<()> {
    let Ok(enabled) = fs::read_to_string(sys.join("kernel/mm/lru_gen/enabled")) else {
        bail!("this kernel has no multi-generational LRU (CONFIG_LRU_GEN)");
    };
    // A set of bits; the first is the whole, the second the walk over page tables.
    let bits = u32::from_str_radix(enabled.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    ensure!(bits & 1 == 1, "the multi-generational LRU is off: /sys/kernel/mm/lru_gen/enabled");
    ensure!(sees_guests, "this kernel's multi-generational LRU does not see what guests touch");
    fs::read_to_string(file(sys)).context("cannot read the generations in debugfs")?;
    Ok(())
}

fn file(sys: &Path) -> PathBuf {
    sys.join("kernel/debug/lru_gen")
}

impl Mglru {
    /// Those below `sys`.
    pub fn new(sys: &Path, page_size: u64) -> Self {
        Self { file: file(sys), page_size }
    }

    /// Ages a cgroup.
    ///
    /// # Errors
    /// It is gone, or the kernel refuses.
    pub fn age(&self, cgroup: &str) -> Result<Aged> {
        let nodes = self.nodes(cgroup, &|_| None)?;
        nodes.iter().try_for_each(|node| self.age_node(*node, node.youngest))?;
        let aged = self.nodes(cgroup, &|_| None)?;
        Ok(Aged(aged.iter().map(|node| (node.node, node.youngest)).collect()))
    }

    /// Bytes that were touched since.
    ///
    /// # Errors
    /// It is gone, or the kernel refuses.
    pub fn touched(&self, cgroup: &str, aged: &Aged) -> Result<u64> {
        let since = |node| aged.0.iter().find(|(aged, _)| *aged == node).map(|(_, since)| *since);
        let before = self.nodes(cgroup, &since)?;
        // By reclaim, or by somebody else: the generations do not tell our window.
        let is_ours = before.iter().all(|node| since(node.node) == Some(node.youngest));
        ensure!(is_ours, "somebody else ages the VM's memory");
        before.iter().try_for_each(|node| self.age_node(*node, node.youngest))?;
        let pages: u64 = self.nodes(cgroup, &since)?.iter().map(|node| node.pages).sum();
        Ok(pages * self.page_size)
    }

    fn age_node(&self, node: Node, youngest: u64) -> Result<()> {
        let command = format!("+ {} {} {youngest} 1 1", node.memcg, node.node);
        fs::write(&self.file, &command).with_context(|| format!("the kernel refuses {command:?}"))
    }

    fn nodes(&self, cgroup: &str, since: &impl Fn(u64) -> Option<u64>) -> Result<Vec<Node>> {
        let text = fs::read_to_string(&self.file).context("cannot read the generations")?;
        let nodes = parse(&text, cgroup, since);
        ensure!(!nodes.is_empty(), "the kernel has no generations of {cgroup}");
        Ok(nodes)
    }
}

/// The nodes of a cgroup, with the pages of the generations from `since` on.
fn parse(text: &str, cgroup: &str, since: &impl Fn(u64) -> Option<u64>) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut memcg = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match words[..] {
            ["memcg", _, ..] => {
                // The path may hold spaces.
                let path = line.trim_start().splitn(3, ' ').nth(2).unwrap_or_default();
                let path = path.trim_start().split_once('/').map_or("", |(_, rest)| rest);
                // One that was removed stays for a while, by the same path and without an id.
                let is_it = |id: &u64| *id != 0 && path == cgroup.trim_start_matches('/');
                memcg = number(1).filter(is_it);
            }
            ["node", _] => {
                if let Some((memcg, node)) = memcg.zip(number(1)) {
                    nodes.push(Node { memcg, node, youngest: 0, pages: 0 });
                }
            }
            // Generation, age, anonymous pages, pages of files.
            [_, _, _, _] if memcg.is_some() => {
                let figures = number(0).zip(number(2)).zip(number(3));
                if let Some((((generation, anonymous), file), last)) = figures.zip(nodes.last_mut())
                {
                    last.youngest = last.youngest.max(generation);
                    if since(last.node).is_some_and(|since| generation >= since) {
                        last.pages += anonymous + file;
                    }
                }
            }
            _ => {}
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `lru_gen_seq_show` prints it.
    const TEXT: &str = "memcg     1 /\n node     0\n          0      20000          5          0 \n\
        memcg    37 /machine/a vm\n node     0\n          2      20000      50000          7 \n \
                  3       1000         40          2 \n          4          1          3          0 \n \
        node     1\n          8      20000         10          0 \n          9          1          4          1 \n\
        memcg    38 /machine/a vm/below\n node     0\n          0          1          9          9 \n\
        memcg     0 /machine/a vm\n node     0\n          5          1          9          9 \n";

    #[test]
    fn the_generations_of_one_cgroup() {
        let since = |node| Some(if node == 0 { 3 } else { 9 });
        let nodes = parse(TEXT, "/machine/a vm", &since);
        let first = Node { memcg: 37, node: 0, youngest: 4, pages: 45 };
        assert_eq!(nodes, [first, Node { node: 1, youngest: 9, pages: 5, ..first }]);
        assert!(parse(TEXT, "/machine", &since).is_empty());
        assert_eq!(parse(TEXT, "/", &since).len(), 1);
        assert!(parse("node 0\n 1 2 3 4\nmemcg x y\n", "y", &since).is_empty());
    }

    #[test]
    fn a_kernel_that_does_not_see_guests_is_not_asked() {
        let sys = tempfile::tempdir().unwrap();
        let refused = |sees| format!("{:#}", check(sys.path(), sees).unwrap_err());
        assert!(refused(true).contains("no multi-generational LRU"));
        fs::create_dir_all(sys.path().join("kernel/mm/lru_gen")).unwrap();
        fs::create_dir_all(sys.path().join("kernel/debug")).unwrap();
        let enabled = sys.path().join("kernel/mm/lru_gen/enabled");
        fs::write(&enabled, "0x0000\n").unwrap();
        assert!(refused(true).contains("is off"));
        fs::write(&enabled, "0x0007\n").unwrap();
        assert!(refused(false).contains("does not see"));
        assert!(refused(true).contains("debugfs"));
        fs::write(file(sys.path()), TEXT).unwrap();
        check(sys.path(), true).unwrap();
    }
}
