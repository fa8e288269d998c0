//! The VMMs that are measured: ours, the floor, those in `peers`, and what `--vs NAME=COMMAND` adds.

use std::path::{Path, PathBuf};

/// What a command may name in braces, and what it stands for.
pub const PLACEHOLDERS: &[(&str, &str)] = &[
    ("kernel", "the kernel as ELF file (vmlinux)"),
    ("bzimage", "the same kernel as bzImage"),
    ("initrd", "the initial RAM disk"),
    ("cmdline", "the kernel command line, one word"),
    ("memory", "guest memory in MiB"),
    ("cpus", "the number of vCPUs"),
    ("disk", "a raw disk image, to be /dev/vda"),
    ("tap", "the name of a tap, to be eth0"),
    ("config", "a file that says all this in the format of Firecracker's --config-file"),
];

/// How much of the report a contender takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// In all of it.
    Whole,
    /// In starts and boots only: it differs from another contender in nothing else.
    Boots,
    /// Up to the first `KVM_RUN`.
    Start,
}

/// One VMM with its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// What the report calls it.
    pub name: String,
    /// What it is, for the report's readers.
    pub about: String,
    /// The program and its arguments, with placeholders.
    pub words: Vec<String>,
    /// What it takes part in.
    pub part: Part,
    /// Words that its guest's kernel command line does not have.
    pub without: &'static [&'static str],
    /// Words that its guest's kernel command line has in addition.
    pub with: &'static [&'static str],
}

/// What placeholders stand for in one run.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The folder with the kernel, the initial RAM disk and the disk.
    pub folder: PathBuf,
    /// The kernel command line.
    pub cmdline: String,
    /// In MiB.
    pub memory: u32,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The tap's name.
    pub tap: String,
}

impl Guest {
    /// A file of the guest's folder.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The guest in the format that Firecracker reads (docs/getting-started.md there).
    pub fn firecracker_config(&self) -> String {
        serde_json::json!({
            "boot-source": {
                "kernel_image_path": self.file("kernel"),
                "initrd_path": self.file("initrd"),
                "boot_args": self.cmdline,
            },
            "drives": [{
                "drive_id": "disk",
                "path_on_host": self.file("disk"),
                "is_root_device": false,
                "is_read_only": false,
            }],
            "network-interfaces": [{ "iface_id": "net", "host_dev_name": self.tap }],
            "machine-config": { "vcpu_count": self.cpus, "mem_size_mib": self.memory },
            "entropy": {},
        })
        .to_string()
    }

    fn value(&self, placeholder: &str) -> Option<String> {
        Some(match placeholder {
            "kernel" | "bzimage" | "initrd" | "disk" | "config" => self.file(placeholder),
            "cmdline" => self.cmdline.clone(),
            "memory" => self.memory.to_string(),
            "cpus" => self.cpus.to_string(),
            "tap" => self.tap.clone(),
            _ => return None,
        })
    }
}

impl Contender {
    /// Our example VMM, and the same with the kernel mapped from its file instead of copied.
    pub fn microvm(program: &Path) -> [Contender; 2] {
        let arguments = "--kernel {kernel} --initrd {initrd} --cmdline {cmdline} --memory {memory}M --cpus {cpus} \
                         --disk path={disk} --net tap={tap}";
        let mapped = format!("{arguments} --map-kernel");
        let with = |name, about: &str, arguments: &str, part| {
            Contender::built_in(name, about, &program.to_string_lossy(), arguments, part)
        };
        let mapped_about = "the same with the kernel mapped from its file instead of copied (--map-kernel)";
        [
            with("microvm", "our example VMM", arguments, Part::Whole),
            with("microvm-map", mapped_about, &mapped, Part::Boots),
        ]
    }

    /// The least that reaches the first `KVM_RUN`.
    pub fn floor(program: &Path) -> Contender {
        let about = "the least that a program on KVM's own interface does up to the first KVM_RUN \
                     (benches/floors): it runs no guest";
        Contender::built_in("floor", about, &program.to_string_lossy(), "{kernel} {disk} {tap}", Part::Start)
    }

    /// A VMM with a program of its own.
    pub(super) fn built_in(name: &str, about: &str, program: &str, arguments: &str, part: Part) -> Contender {
        let words = arguments.split_whitespace().map(str::to_owned);
        Contender {
            name: name.to_owned(),
            about: about.to_owned(),
            words: [program.to_owned()].into_iter().chain(words).collect(),
            part,
            without: &[],
            with: &[],
        }
    }

    /// Reads `NAME=COMMAND`.
    ///
    /// # Errors
    /// Says what is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Contender, String> {
        let (name, command) =
            text.split_once('=').ok_or("give NAME=COMMAND, such as fc='firecracker ...'")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!("the name {name:?} is to be of letters, digits, '-', '_' and '.'"));
        }
        let words = split(command)?;
        if words.is_empty() {
            return Err(format!("{name}= is missing its command"));
        }
        for placeholder in words.iter().flat_map(|word| placeholders(word)) {
            if !PLACEHOLDERS.iter().any(|(known, _)| *known == placeholder) {
                let known: Vec<String> = PLACEHOLDERS.iter().map(|(name, _)| format!("{{{name}}}")).collect();
                return Err(format!("{{{placeholder}}} stands for nothing; known: {}", known.join(" ")));
            }
        }
        let about = "given with --vs".to_owned();
        Ok(Contender { name: name.to_owned(), about, words, part: Part::Whole, without: &[], with: &[] })
    }

    /// A guest as this VMM gets it: the kernel command line as it needs it.
    pub fn guest(&self, guest: &Guest) -> Guest {
        let words = guest.cmdline.split_whitespace().filter(|word| !self.without.contains(word));
        let words: Vec<&str> = words.chain(self.with.iter().copied()).collect();
        Guest { cmdline: words.join(" "), ..guest.clone() }
    }

    /// The command line for one guest.
    pub fn command(&self, guest: &Guest) -> Vec<String> {
        let guest = self.guest(guest);
        self.words.iter().map(|word| fill(word, &guest)).collect()
    }
}

/// The words in braces: `{lower}`. Other braces are left alone.
fn placeholders(word: &str) -> impl Iterator<Item = &str> {
    word.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(name, _)| name)
        .filter(|name| is_name(name))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase())
}

fn fill(word: &str, guest: &Guest) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let value = after.split_once('}').and_then(|(name, end)| Some((guest.value(name)?, end)));
        if let Some((value, end)) = value {
            out.push_str(&value);
            rest = end;
        } else {
            out.push('{');
            rest = after;
        }
    }
    out + rest
}

/// Splits a command into words as a shell does: at white space, except between quotes and behind a backslash.
/// Nothing else of a shell is there.
fn split(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = command.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (_, '\\') => {
                let next = characters.next().ok_or("the command ends in a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("a {quote} in the command is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests;
