//! The commands that put a version back: only of names and versions that are plainly names and versions.
//!
//! They come from files that others write, and somebody may paste the command into a shell of root's. What is not made of
//! the letters that its kind of package allows gives no command at all.

use std::path::Path;

use super::binary_owner::owner;
use crate::code_facts::Ecosystem;
use crate::config::Environment;

/// The command that makes `name` be at version `was` again, now that it is at `is`.
pub(super) fn command(config: &Environment, name: &str, was: &str, is: Option<&str>) -> Option<String> {
    let path = config.paths.first()?;
    if config.kind == Ecosystem::Binary && is.is_some() {
        // It has other bytes: which version had those of the snapshot is not known.
        return None;
    }
    if config.kind == Ecosystem::Binary {
        return owner(Path::new(name))
            .filter(|package| is_name(package))
            .map(|package| format!("apt-get install --reinstall {package}"));
    }
    if !is_version(was) {
        return None;
    }
    let plain = is_name(name).then_some(name);
    match config.kind {
        Ecosystem::Python => {
            let python = path.join("bin/python");
            let python = if python.exists() { quoted(&python)? } else { "python3".to_owned() };
            Some(format!("{python} -m pip install '{}=={was}'", plain?))
        }
        Ecosystem::Npm => {
            let scoped = name.strip_prefix('@').and_then(|rest| rest.split_once('/'));
            let fits = scoped.map_or(plain.is_some(), |(scope, name)| is_name(scope) && is_name(name));
            fits.then(|| Some(format!("npm install --prefix {} '{name}@{was}'", quoted(path)?)))?
        }
        Ecosystem::Cargo => {
            let manifest = super::cargo::file(path).with_file_name("Cargo.toml");
            // Of a crate that is gone, or there in several versions, cargo needs more than this.
            let is = is.filter(|is| is_version(is))?;
            Some(format!(
                "cargo update --manifest-path {} -p '{}@{is}' --precise '{was}'",
                quoted(&manifest)?,
                plain?
            ))
        }
        Ecosystem::System => {
            let (bare, architecture) = name.split_once(':').unwrap_or((name, ""));
            let fits = is_name(bare) && (architecture.is_empty() || is_name(architecture));
            let dpkg = path.join("var/lib/dpkg/status").exists();
            match (fits, dpkg) {
                (true, true) => Some(format!("apt-get install --allow-downgrades '{name}={was}'")),
                (true, false) => Some(format!("dnf install --allowerasing '{name}-{was}'")),
                (false, _) => None,
            }
        }
        Ecosystem::Binary => None,
    }
}

/// A name of a package: letters, digits and a few marks inside.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 214
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'+' | b'-'))
}

/// A single version.
fn is_version(version: &str) -> bool {
    let mut bytes = version.bytes();
    version.len() <= 128
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'+' | b'-' | b'~' | b':' | b'!'))
}

/// A path as one word of a shell; none where it has a character that no shell should see.
fn quoted(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let plain = !text.starts_with('-') && !text.contains(|c: char| c == '\'' || c.is_control());
    plain.then(|| format!("'{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(kind: Ecosystem, path: &str) -> Environment {
        Environment { name: "e".into(), kind, paths: vec![path.into()], ignore: Vec::new() }
    }

    #[test]
    fn each_kind_has_its_command() {
        let python = environment(Ecosystem::Python, "/srv/v");
        assert_eq!(command(&python, "x", "1.2", None).unwrap(), "python3 -m pip install 'x==1.2'");
        let npm = environment(Ecosystem::Npm, "/srv/a b");
        assert_eq!(
            command(&npm, "@s/x", "1.2.3-rc.1", None).unwrap(),
            "npm install --prefix '/srv/a b' '@s/x@1.2.3-rc.1'"
        );
        let cargo = environment(Ecosystem::Cargo, "/srv/c/Cargo.lock");
        assert_eq!(
            command(&cargo, "x", "1.0.0", Some("1.0.1")).unwrap(),
            "cargo update --manifest-path '/srv/c/Cargo.toml' -p 'x@1.0.1' --precise '1.0.0'"
        );
        assert_eq!(command(&cargo, "x", "1.0.0, 2.0.0", Some("2.0.0")), None);
        let system = environment(Ecosystem::System, "/nonexistent");
        assert_eq!(
            command(&system, "bash", "2:5.2-3.el9", None).unwrap(),
            "dnf install --allowerasing 'bash-2:5.2-3.el9'"
        );
    }

    #[test]
    fn no_command_is_made_of_hostile_names() {
        let long = "x".repeat(300);
        for bad in [
            "-x",
            "--index-url=http://e",
            "x;id",
            "x'y",
            "$(id)",
            "x y",
            "x\ny",
            "",
            "../x",
            "é",
            "`id`",
            "x|y",
            &long,
        ] {
            for kind in [Ecosystem::Python, Ecosystem::Npm, Ecosystem::Cargo, Ecosystem::System] {
                let environment = environment(kind, "/srv/v");
                assert_eq!(command(&environment, bad, "1.0", Some("2.0")), None, "{bad:?} {kind:?}");
                assert_eq!(command(&environment, "x", bad, Some("2.0")), None, "{bad:?} {kind:?}");
            }
        }
        let quote = environment(Ecosystem::Npm, "/srv/it's");
        assert_eq!(command(&quote, "x", "1.0", None), None);
    }
}
