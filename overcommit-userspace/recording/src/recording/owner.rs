//! The user who has become root, and is to own what is written and to run COMMAND.

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// The user behind sudo, run0, doas or pkexec, by the variables that these set; `None` if
    /// root is nobody else.
    ///
    /// # Errors
    /// A variable is set and does not say who: root would be taken for the user.
    pub fn behind_sudo() -> Result<Option<Self>> {
        behind(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

fn behind(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Owner>> {
    let owner = match (variable("SUDO_UID"), variable("SUDO_GID")) {
        (Some(uid), Some(gid)) => Owner { uid: id("SUDO_UID", &uid)?, gid: id("SUDO_GID", &gid)? },
        (Some(_), None) => bail!("SUDO_UID is set and SUDO_GID is not; set both or neither"),
        (None, Some(_)) => bail!("SUDO_GID is set and SUDO_UID is not; set both or neither"),
        (None, None) => match (variable("DOAS_USER"), variable("PKEXEC_UID")) {
            (Some(name), _) => of(User::from_name(&name)?, "DOAS_USER", &name)?,
            (None, Some(uid)) => {
                let user = User::from_uid(Uid::from_raw(id("PKEXEC_UID", &uid)?))?;
                of(user, "PKEXEC_UID", &uid)?
            }
            (None, None) => return Ok(None),
        },
    };
    Ok((owner.uid != 0).then_some(owner))
}

fn id(variable: &str, value: &str) -> Result<u32> {
    // The last one stands for "unchanged" in the kernel's calls.
    let id = value.parse().ok().filter(|id| *id != u32::MAX);
    id.with_context(|| format!("{variable} is {value:?}, which is no id; unset it, or use sudo"))
}

fn of(user: Option<User>, variable: &str, value: &str) -> Result<Owner> {
    let user =
        user.with_context(|| format!("{variable} is {value:?}, and there is no such user"))?;
    Ok(Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(variables: &[(&str, &str)]) -> Result<Option<Owner>> {
        behind(|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nobody_is_root_by_mistake() {
        let owner = |uid, gid| Some(Owner { uid, gid });
        assert_eq!(by(&[]).unwrap(), None);
        assert_eq!(by(&[("SUDO_UID", "1000"), ("SUDO_GID", "100")]).unwrap(), owner(1000, 100));
        assert_eq!(by(&[("SUDO_UID", "0"), ("SUDO_GID", "0")]).unwrap(), None);
        assert_eq!(by(&[("DOAS_USER", "root")]).unwrap(), None);
        assert_eq!(by(&[("PKEXEC_UID", "0")]).unwrap(), None);
        for (wrong, why) in [
            (&[("SUDO_UID", "1000")][..], "SUDO_GID is not"),
            (&[("SUDO_GID", "1000")], "SUDO_UID is not"),
            (&[("SUDO_UID", "abc"), ("SUDO_GID", "100")], "SUDO_UID is \"abc\""),
            (&[("SUDO_UID", "1000"), ("SUDO_GID", "-1")], "SUDO_GID is \"-1\""),
            (&[("SUDO_UID", "4294967295"), ("SUDO_GID", "1")], "no id"),
            (&[("DOAS_USER", "no such user")], "no such user"),
            (&[("PKEXEC_UID", "")], "no id"),
        ] {
            let error = format!("{:#}", by(wrong).unwrap_err());
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }
}
