//! The kernel's types, as BTF tells them (include/uapi/linux/btf.h, 6.18). Read in one pass, and
//! looked up without a copy of any: a kernel has a hundred thousand.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// `BTF_MAGIC`, as this machine stores it: the running kernel's BTF has its byte order.
const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_type`.
const TYPE: usize = 12;

/// A kind of type, of those that are looked up or passed through (`BTF_KIND_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `struct`
    Struct,
    /// `union`
    Union,
    /// `enum`, of values of 32 bits
    Enum,
    /// A function.
    Function,
    /// What a function takes and returns.
    Prototype,
    /// `typedef`, `const` and the like: another name, or a quality, of one type.
    Alias,
    /// Any other.
    Other,
}

impl Kind {
    /// By its number, with the bytes that follow `struct btf_type` for each member, and once.
    fn of(number: u32) -> Option<(Self, usize, usize)> {
        Some(match number {
            1 | 14 | 17 => (Self::Other, 0, 4),
            2 | 7 | 16 => (Self::Other, 0, 0),
            3 => (Self::Other, 0, 12),
            4 => (Self::Struct, 12, 0),
            5 => (Self::Union, 12, 0),
            6 => (Self::Enum, 8, 0),
            8..=11 | 18 => (Self::Alias, 0, 0),
            12 => (Self::Function, 0, 0),
            13 => (Self::Prototype, 8, 0),
            15 | 19 => (Self::Other, 12, 0),
            _ => return None,
        })
    }
}

/// Where a field lies, in bits, and how many it has if it is a bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From the start of the structure.
    pub bit: u32,
    /// 0 of a field that is none.
    pub bits: u32,
}

/// The types of a kernel, or of a module.
pub struct Btf<'a> {
    /// Of a module: those of the kernel, whose numbers and names come before its own.
    base: Option<&'a Self>,
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; the first of a kernel is the empty one, `void`.
    starts: Vec<usize>,
    /// What is looked up by name. Of several of one kind the first counts.
    by_name: HashMap<(Kind, &'a [u8]), u32>,
}

/// A type: its kind, its number of members, and the word that is its size or another type.
struct Type<'a> {
    kind: Kind,
    /// Whether places of members are split into bits and their number (`kind_flag`).
    has_bits: bool,
    other: u32,
    name: &'a [u8],
    /// One slice for each member.
    members: std::slice::ChunksExact<'a, u8>,
    /// Where the next type begins.
    end: usize,
}

impl<'a> Btf<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// It is malformed, or has a kind of type that is not known: nothing behind it can be read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::parse_on(None, bytes)
    }

    /// Reads that of a module of this kernel.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_module(&'a self, bytes: &'a [u8]) -> Result<Self> {
        Self::parse_on(Some(self), bytes)
    }

    fn parse_on(base: Option<&'a Self>, bytes: &'a [u8]) -> Result<Self> {
        let magic = bytes.get(..2).and_then(|magic| magic.try_into().ok());
        ensure!(magic.map(u16::from_ne_bytes) == Some(MAGIC), "it is no BTF");
        let header = |place: usize| word(bytes, place).context("its header is cut off");
        let part = |start: u32, length: u32| {
            let start = header(4)?.checked_add(start).context("it is malformed")? as usize;
            bytes.get(start..).and_then(|rest| rest.get(..length as usize)).context("it is cut off")
        };
        let types = part(header(8)?, header(12)?)?;
        let strings = part(header(16)?, header(20)?)?;
        let starts = if base.is_some() { Vec::new() } else { vec![types.len()] };
        let mut btf = Self { base, types, strings, starts, by_name: HashMap::new() };
        let mut at = 0;
        while at < types.len() {
            btf.starts.push(at);
            let number = btf.count() - 1;
            let one = btf.read(number).with_context(|| format!("type {number}"))?;
            at = one.end;
            if matches!(one.kind, Kind::Struct | Kind::Enum | Kind::Function) {
                btf.by_name.entry((one.kind, one.name)).or_insert(number);
            }
        }
        Ok(btf)
    }

    /// How many types there are, those of the kernel too.
    fn count(&self) -> u32 {
        self.base.map_or(0, Self::count) + self.starts.len() as u32
    }

    fn read(&self, number: u32) -> Result<Type<'a>> {
        let own = match self.base {
            Some(base) if number < base.count() => return base.read(number),
            base => number - base.map_or(0, Self::count),
        };
        let start = *self.starts.get(own as usize).context("there is no such type")?;
        let types = self.types;
        let field = |place| word(types, start + place).context("it is cut off");
        let (name, info, other) = (field(0)?, field(4)?, field(8)?);
        let (kind, each, once) = Kind::of(info >> 24 & 0x1f)
            .with_context(|| format!("its kind is {}, which is not known", info >> 24 & 0x1f))?;
        let end = start + TYPE + each * (info & 0xffff) as usize + once;
        let behind = types.get(start + TYPE..end).context("it is cut off")?;
        Ok(Type {
            kind,
            has_bits: info >> 31 == 1,
            other,
            name: self.string(name),
            members: behind.chunks_exact(each.max(1)),
            end,
        })
    }

    fn string(&self, start: u32) -> &'a [u8] {
        let own = match self.base {
            Some(base) if (start as usize) < base.strings.len() => return base.string(start),
            base => start as usize - base.map_or(0, |base| base.strings.len()),
        };
        let text = self.strings.get(own..).unwrap_or_default();
        text.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn named(&self, kind: Kind, name: &str) -> Option<Type<'a>> {
        match self.by_name.get(&(kind, name.as_bytes())) {
            Some(number) => self.read(*number).ok(),
            // A module has no copy of what is the kernel's too.
            None => self.base?.named(kind, name),
        }
    }

    /// The type behind other names and qualities.
    fn resolve(&self, mut number: u32) -> Result<Type<'a>> {
        // One that leads to itself is malformed.
        for _ in 0..32 {
            let found = self.read(number)?;
            if found.kind != Kind::Alias {
                return Ok(found);
            }
            number = found.other;
        }
        bail!("type {number} leads nowhere")
    }

    /// Where a field lies in a structure, by its name or by those of the fields that it is in,
    /// with dots between; `None` if there is none.
    pub fn field(&self, structure: &str, path: &str) -> Option<Place> {
        let mut of = self.named(Kind::Struct, structure)?;
        let mut place = Place { bit: 0, bits: 0 };
        for name in path.split('.') {
            let (found, number) = self.member(of, name, 0)?;
            place = Place { bit: place.bit.saturating_add(found.bit), ..found };
            of = self.resolve(number).ok()?;
        }
        Some(place)
    }

    /// A member, also one within members that have no name, with its type.
    fn member(&self, of: Type<'a>, name: &str, depth: u32) -> Option<(Place, u32)> {
        if !matches!(of.kind, Kind::Struct | Kind::Union) || depth > 8 {
            return None;
        }
        of.members.clone().find_map(|member| {
            let (its_name, number, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let place = if of.has_bits {
                Place { bit: offset & 0xff_ffff, bits: offset >> 24 }
            } else {
                Place { bit: offset, bits: 0 }
            };
            match self.string(its_name) {
                its if its == name.as_bytes() => Some((place, number)),
                b"" => {
                    let (inner, number) =
                        self.member(self.resolve(number).ok()?, name, depth + 1)?;
                    let bit = place.bit.saturating_add(inner.bit);
                    Some((Place { bit, ..inner }, number))
                }
                _ => None,
            }
        })
    }

    /// The value of a name in an enumeration of that name.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let mut values = self.named(Kind::Enum, enumeration)?.members;
        let value = |value: &'a [u8]| Some((self.string(word(value, 0)?), word(value, 4)?));
        values
            .find_map(|each| value(each).filter(|(its, _)| *its == name.as_bytes()))
            .map(|of| of.1)
    }

    /// The name of the type that a function returns.
    pub fn returned(&self, function: &str) -> Option<&'a [u8]> {
        let prototype = self.read(self.named(Kind::Function, function)?.other).ok()?;
        let is_prototype = prototype.kind == Kind::Prototype;
        Some(self.read(prototype.other).ok().filter(|_| is_prototype)?.name)
    }
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    let word = bytes.get(place..)?.get(..4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const NAMES: &[u8] = b"\0task\0pid\0flag\0place\0point\0x\0y\0color\0red\0load\0bool\0\
        kvm_vcpu\0vcpu_id\0vcpu_svm\0vcpu\0vmcb\0vcpu_vmx\0vt\0vcpu_vt\0exit_reason\0exit_qualification\0";

    pub(crate) fn name(of: &str) -> u32 {
        let of = [b"\0", of.as_bytes(), b"\0"].concat();
        NAMES.windows(of.len()).position(|window| window == of).unwrap() as u32 + 1
    }

    pub(crate) fn info(kind: u32, members: u32) -> u32 {
        kind << 24 | members
    }

    /// A forward declaration of `task`, then what it is: a field, a bit, and a member without a
    /// name that holds a `point` by another name.
    fn types() -> Vec<u32> {
        let bits = 1 << 31;
        [
            // 1 and 2: a forward declaration, an integer
            vec![name("task"), info(7, 0), 0],
            vec![name("bool"), info(1, 0), 1, 8],
            // 3: struct point
            vec![name("point"), info(4, 2), 8, name("x"), 2, 0, name("y"), 2, 32],
            // 4: const struct point; 5: a union with that in it
            vec![0, info(10, 0), 3],
            vec![0, info(5, 1), 8, name("place"), 4, 0],
            // 6: struct task
            vec![name("task"), bits | info(4, 3), 20, name("pid"), 2, 64],
            vec![name("flag"), 2, 1 << 24 | 97, 0, 5, 128],
            // 7: an enumeration; 8 and 9: a function
            vec![name("color"), info(6, 1), 4, name("red"), 7],
            vec![0, info(13, 1), 2, 0, 2],
            vec![name("load"), info(12, 0), 8],
        ]
        .concat()
    }

    pub(crate) fn btf(types: &[u32]) -> Vec<u8> {
        let length = types.len() as u32 * 4;
        let header = [0x0001_0000 | u32::from(MAGIC), 24, 0, length, length, NAMES.len() as u32];
        let words = header.iter().chain(types).flat_map(|word| word.to_ne_bytes());
        words.chain(NAMES.iter().copied()).collect()
    }

    #[test]
    fn fields_are_found_also_where_a_forward_declaration_has_the_name() {
        let bytes = btf(&types());
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.field("task", "pid"), Some(Place { bit: 64, bits: 0 }));
        assert_eq!(btf.field("task", "flag"), Some(Place { bit: 97, bits: 1 }));
        assert_eq!(btf.field("task", "place.y"), Some(Place { bit: 160, bits: 0 }));
        assert_eq!(btf.field("task", "place.z"), None);
        assert_eq!(btf.field("task", "pid.x"), None);
        assert_eq!(btf.field("nothing", "pid"), None);
        assert_eq!(btf.enumerator("color", "red"), Some(7));
        assert_eq!(btf.enumerator("color", "blue"), None);
        assert_eq!(btf.returned("load"), Some(&b"bool"[..]));
        assert_eq!(btf.returned("store"), None);
    }

    /// Of a module, whose `lapic` holds a `point` of the kernel's, and whose names are the kernel's but
    /// for one.
    #[test]
    fn a_module_goes_on_where_its_kernel_ends() {
        let bytes = btf(&types());
        let kernel = Btf::parse(&bytes).unwrap();
        let own = NAMES.len() as u32;
        let lapic = [own + 1, info(4, 2), 16, name("x"), 2, 64, name("place"), 4, 96];
        let length = lapic.len() as u32 * 4;
        let header = [0x0001_0000 | u32::from(MAGIC), 24, 0, length, length, 7];
        let words = header.into_iter().chain(lapic).flat_map(u32::to_ne_bytes);
        let bytes: Vec<u8> = words.chain(*b"\0lapic\0").collect();
        let module = kernel.parse_module(&bytes).unwrap();
        assert_eq!(module.field("lapic", "x"), Some(Place { bit: 64, bits: 0 }));
        assert_eq!(module.field("lapic", "place.y"), Some(Place { bit: 128, bits: 0 }));
        assert_eq!(module.field("task", "pid"), Some(Place { bit: 64, bits: 0 }));
        assert!(Btf::parse(&bytes).unwrap().field("lapic", "x").is_none(), "without its kernel");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let refused = |bytes: &[u8]| format!("{:#}", Btf::parse(bytes).err().unwrap());
        assert_eq!(refused(b""), "it is no BTF");
        let whole = btf(&types());
        for length in 2..whole.len() {
            // Neither panics nor takes what is not whole.
            assert!(Btf::parse(&whole[..length]).is_err(), "{length}");
        }
        let unknown = btf(&[name("task"), info(30, 0), 0]);
        assert_eq!(refused(&unknown), "type 1: its kind is 30, which is not known");
        let cut = btf(&[name("task"), info(4, 2), 8, name("x"), 2, 0]);
        assert_eq!(refused(&cut), "type 1: it is cut off");
    }

    #[test]
    fn a_type_that_leads_to_itself_ends() {
        let looped = [
            vec![name("x"), info(8, 0), 1],
            vec![0, info(5, 1), 8, 0, 2, 0],
            vec![name("task"), info(4, 2), 8, name("x"), 1, 0, 0, 2, 0],
        ];
        let bytes = btf(&looped.concat());
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.field("task", "x.y"), None);
        assert_eq!(btf.field("task", "y"), None);
    }
}
