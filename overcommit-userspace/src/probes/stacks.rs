//! Where in the kernel did a thread fall asleep?

use crate::kernel::Functions;
use crate::probes::object;
use anyhow::Result;
use aya::Ebpf;
use aya::maps::{MapData, StackTraceMap};
use std::collections::HashMap;

/// The stacks that the programs took, by number.
pub struct Stacks {
    map: StackTraceMap<MapData>,
    /// Read with the first stack.
    functions: Option<Functions>,
    known: HashMap<u32, String>,
}

/// Whether a function belongs to the program that takes the stack, or calls it.
fn is_ours(function: &str) -> bool {
    ["bpf_", "__bpf_", "__traceiter_"].iter().any(|prefix| function.starts_with(prefix))
}

impl Stacks {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self> {
        let map = object::take(ebpf, "STACKS")?;
        let map = StackTraceMap::try_from(map)?;
        Ok(Self { map, functions: None, known: HashMap::new() })
    }

    /// The functions of a stack, the outermost first, with `;` between: as flame graphs
    /// read them. Empty for one that is gone.
    ///
    /// # Errors
    /// The kernel does not tell its functions.
    pub fn folded(&mut self, number: u32) -> Result<&str> {
        if self.functions.is_none() {
            self.functions = Some(Functions::read()?);
        }
        let (map, functions) = (&self.map, &self.functions);
        let fold = || {
            let stack = map.get(&number, 0).ok()?;
            let name = |address| functions.as_ref()?.name(address);
            let names = stack.frames().iter().filter_map(|frame| name(frame.ip));
            let mut names: Vec<&str> = names.skip_while(|name| is_ours(name)).collect();
            names.reverse();
            Some(names.join(";"))
        };
        Ok(self.known.entry(number).or_insert_with(|| fold().unwrap_or_default()))
    }
}
