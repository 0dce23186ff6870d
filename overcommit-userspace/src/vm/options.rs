//! Options of QEMU: `key=value` pairs, and the sections of a file that `-readconfig` names.

use overcommit_recording::model::balloon::LARGEST;

/// Splits `key=value,…`. The first pair without `=` has the implied key; a later
/// one is a switch: `key` is `on`, `nokey` is `off` (`get_opt_name_value`).
pub(super) fn pairs(argument: &[u8], implied: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    for (index, part) in split_at_commas(argument).into_iter().enumerate() {
        let equals = part.iter().position(|byte| *byte == b'=');
        pairs.push(match equals {
            Some(at) => (part[..at].to_vec(), part[at + 1..].to_vec()),
            None if index == 0 => (implied.to_vec(), part),
            None => match part.strip_prefix(b"no") {
                Some(key) => (key.to_vec(), b"off".to_vec()),
                None => (part, b"on".to_vec()),
            },
        });
    }
    pairs
}

/// The properties of an object or a device, which are written as pairs or as one JSON object.
pub(super) fn properties(argument: &[u8], implied: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    if !argument.starts_with(b"{") {
        return pairs(argument, implied);
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(argument).unwrap_or_default();
    let plain = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    object.into_iter().map(|(key, value)| (key.into_bytes(), plain(value).into_bytes())).collect()
}

/// The parts between single commas; two commas stand for one.
fn split_at_commas(argument: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = argument.iter().peekable();
    while let Some(&byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&&b',').is_none() {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(byte);
        }
    }
    parts
}

/// The last value of a key that is not empty.
pub(super) fn value(pairs: &[(Vec<u8>, Vec<u8>)], key: &[u8]) -> Option<Vec<u8>> {
    let found = pairs.iter().rev().find(|(k, v)| k == key && !v.is_empty());
    found.map(|(_, v)| v.clone())
}

/// Whether a switch is on (`qapi_bool_parse`, qapi/qapi-util.c).
pub(super) fn is_on(value: &[u8]) -> bool {
    matches!(value, b"on" | b"yes" | b"true" | b"y")
}

/// A size as `qemu_strtosz` reads it, but for hexadecimal ones: fractions allowed, of the unit that
/// its suffix says, else of that power of two. In bytes.
pub(super) fn size(text: &[u8], unit: u32) -> Option<u64> {
    let text = str::from_utf8(text).ok()?;
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (amount, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" => unit,
        "B" | "b" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        "E" | "e" => 60,
        _ => return None,
    };
    let unit = 1u64.checked_shl(shift)?;
    let bytes = match amount.split_once('.') {
        None => amount.parse::<u64>().ok()?.checked_mul(unit),
        Some(_) => {
            let bytes = amount.parse::<f64>().ok()? * unit as f64;
            (bytes.is_finite() && bytes < u64::MAX as f64).then_some(bytes as u64)
        }
    };
    bytes.filter(|bytes| *bytes <= LARGEST)
}

/// The options of a file for `-readconfig`, each with its argument as a command line would have it.
/// A section is `[kind]` or `[kind "id"]`, with lines of `key = "value"` (`qemu_config_foreach`,
/// util/qemu-config.c). What else is in it is left out.
pub(super) fn sections(file: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut sections: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for line in file.lines().map(str::trim) {
        if let Some(head) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let (kind, id) = head.split_once(' ').unwrap_or((head, ""));
            let option = match kind {
                "memory" => "m",
                "smp-opts" => "smp",
                other => other,
            };
            let id = id.trim().trim_matches('"');
            let id = if id.is_empty() { String::new() } else { format!("id={}", escaped(id)) };
            sections.push((option.into(), id.into()));
        } else if let Some((key, value)) = line.split_once('=')
            && let Some((_, argument)) = sections.last_mut()
        {
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let comma = if argument.is_empty() { "" } else { "," };
            let value = escaped(value.unwrap_or_default());
            argument.extend(format!("{comma}{}={value}", key.trim()).bytes());
        }
    }
    sections
}

fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_a_command_line_would() {
        let file = "# Machine\n[machine]\ntype = \"q35\"\naccel=\"kvm\"\n\n[memory]\n\
            size = \"1024M\"\n[chardev \"monitor\"]\npath = \"/run/a,b\"\nno value\n";
        let sections = sections(file);
        let text: Vec<String> = sections
            .iter()
            .map(|(option, argument)| {
                format!("-{} {}", option.escape_ascii(), argument.escape_ascii())
            })
            .collect();
        let expected =
            ["-machine type=q35,accel=kvm", "-m size=1024M", "-chardev id=monitor,path=/run/a,,b"];
        assert_eq!(text, expected);
    }
}
