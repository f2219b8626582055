//! Flags of `serve`.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::model::PartsArgs;
use super::place::{LoraArgs, PlaceArgs, RulesArgs};
use super::{environment, values};
use crate::commands::serve::{Address, ServeJob};
use crate::error::usage;
use crate::pipeline::{DeviceChoice, EditParameters, SIZE_LEVELS, STEPS};
use crate::serve::limits::{DEADLINE_SECONDS_MAX, DEVICES_MAX, KEYS_BYTES_MAX, QUEUE_MAX};

/// Flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port to listen at, or unix:PATH
    ///
    /// Encryption (TLS) is left to a proxy in front.
    #[arg(long, default_value = "127.0.0.1:8000", value_parser = address, value_name = "HOST:PORT")]
    listen: Address,
    /// Model folder, a transformer file in it, or a name such as v1.1 [default: the demo model]
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Name of the model in requests and answers; can be given several times, the first is shown [default: as the model's version]
    #[arg(long, value_name = "NAME", help_heading = "Requests", hide_short_help = true)]
    served_name: Vec<String>,
    /// Denoising steps of a request that says nothing else
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::within(&STEPS), allow_negative_numbers = true, help_heading = "Requests")]
    steps: usize,
    /// Side of the square whose area a picture is given, unless its request says otherwise [default: the model's]
    #[arg(long, value_parser = values::within(&SIZE_LEVELS), allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Requests")]
    size_level: Option<usize>,
    #[command(flatten)]
    rules: RulesArgs,
    /// Requests that may wait; more are refused with status 503
    #[arg(long, default_value_t = 8, value_parser = values::whole(0, QUEUE_MAX), allow_negative_numbers = true, value_name = "N", help_heading = "Requests")]
    queue: usize,
    /// Seconds from a request's arrival to its answer, unless it says otherwise
    #[arg(long, default_value_t = 300, value_parser = values::whole(1, DEADLINE_SECONDS_MAX as usize), allow_negative_numbers = true, value_name = "SECONDS", help_heading = "Requests", hide_short_help = true)]
    deadline: usize,
    /// File with the keys of those who may ask, one a line; otherwise STEP1X_API_KEY, separated by commas
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    api_key_file: Option<PathBuf>,
    /// Listen for other machines without a key
    #[arg(long, help_heading = "Access", hide_short_help = true)]
    no_auth: bool,
    /// Origin of pages of others that may ask, such as https://example.org; can be given several times
    #[arg(long, value_name = "ORIGIN", value_parser = origin, help_heading = "Access", hide_short_help = true)]
    cors_origin: Vec<String>,
    /// Seconds that requests are taken after SIGTERM, while /ready says no [default: 5; on a terminal 0]
    #[arg(long, value_parser = values::whole(0, 3600), allow_negative_numbers = true, value_name = "SECONDS", help_heading = "Ending", hide_short_help = true)]
    drain_delay: Option<usize>,
    /// Seconds that running edits may take after that; then they are stopped
    #[arg(long, default_value_t = 60, value_parser = values::whole(0, 3600), allow_negative_numbers = true, value_name = "SECONDS", help_heading = "Ending", hide_short_help = true)]
    drain_timeout: usize,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Several devices with a process each, such as 0,1 or 0-7; cpu stands for the processor
    #[arg(long, value_name = "LIST", value_parser = devices, conflicts_with = "device", help_heading = "Device", hide_short_help = true)]
    devices: Option<Devices>,
    /// Leave out the edit that makes a GPU ready before the first request
    #[arg(long, help_heading = "Device", hide_short_help = true)]
    no_warm: bool,
    /// Be the worker of a device for another server, as serve --devices starts it: requests come on standard input
    #[arg(long, value_name = "DEVICE", value_parser = values::device, help_heading = "Device", hide_short_help = true)]
    worker: Option<DeviceChoice>,
    /// Write prompts into the log
    #[arg(long, help_heading = "Log", hide_short_help = true)]
    log_prompts: bool,
    /// Write no line for each request
    #[arg(short, long, help_heading = "Log", hide_short_help = true)]
    quiet: bool,
}

/// Devices, in a type that is one value to clap.
#[derive(Clone, Debug)]
struct Devices(Vec<DeviceChoice>);

impl ServeArgs {
    /// The validated job. `arguments`: the program's path and what it was given, for worker processes.
    ///
    /// # Errors
    /// A usage error: a file of keys that cannot be read, or flags that do not fit each other.
    pub fn job(&self, arguments: Vec<OsString>) -> Result<ServeJob> {
        let place = self.place.choice()?;
        let on_terminal = std::io::stderr().is_terminal();
        let drain_delay = self.drain_delay.unwrap_or(if on_terminal { 0 } else { 5 });
        let seconds = |seconds: usize| Duration::from_secs(seconds as u64);
        Ok(ServeJob {
            listen: self.listen.clone(),
            model: self.model.as_deref().map(|model| self.parts.of(model)).transpose()?,
            loras: self.lora.lora.clone(),
            names: self.served_name.clone(),
            edit: EditParameters {
                steps: self.steps,
                size_level: self.size_level,
                rules: self.rules.choice(),
                ..EditParameters::new("")
            },
            place: crate::pipeline::PlaceChoice { device: self.worker.unwrap_or(place.device), ..place },
            devices: self.devices.as_ref().map(|devices| devices.0.clone()).unwrap_or_default(),
            worker: self.worker.is_some(),
            warm: !self.no_warm,
            queue: self.queue,
            keys: self.keys().map_err(usage)?,
            no_auth: self.no_auth,
            origins: self.cors_origin.clone(),
            deadline: seconds(self.deadline),
            drain_delay: seconds(drain_delay),
            drain_timeout: seconds(self.drain_timeout),
            log_prompts: self.log_prompts,
            quiet: self.quiet,
            arguments,
        })
    }

    fn keys(&self) -> Result<Option<String>> {
        match &self.api_key_file {
            Some(path) => read_keys(path).with_context(|| format!("cannot read the keys in {}", path.display())).map(Some),
            None => Ok(environment::api_keys()),
        }
    }
}

fn read_keys(path: &Path) -> Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(KEYS_BYTES_MAX + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= KEYS_BYTES_MAX, "it has more than {KEYS_BYTES_MAX} bytes");
    Ok(text)
}

/// An address of this machine.
fn address(text: &str) -> Result<Address> {
    if let Some(path) = text.strip_prefix("unix:") {
        ensure!(!path.is_empty(), "give a path behind unix:");
        return Ok(Address::Unix(path.into()));
    }
    let split = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = split.context("give HOST:PORT, such as 127.0.0.1:8000, or unix:PATH")?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let address: IpAddr =
        host.parse().ok().context("give the host as an address of this machine, such as 127.0.0.1, 0.0.0.0 or [::]")?;
    Ok(Address::Tcp(address, port))
}

/// A page's origin, as browsers send it.
fn origin(text: &str) -> Result<String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = host.filter(|host| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
    plain.map(|_| text.to_ascii_lowercase()).context("give an origin such as https://example.org, without a path")
}

/// A list such as 0,1 or 0-7.
fn devices(text: &str) -> Result<Devices> {
    let mut list = Vec::new();
    for item in text.split(',').map(str::trim) {
        let number = |text: &str| text.parse::<u16>().ok().map(usize::from);
        let found: Option<Vec<DeviceChoice>> = match item.split_once('-') {
            None if item == "cpu" => Some(vec![DeviceChoice::Cpu]),
            None => number(item).map(|one| vec![DeviceChoice::Cuda(one)]),
            Some((first, last)) => {
                let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
                range.map(|(first, last)| (first..=last).map(DeviceChoice::Cuda).collect())
            }
        };
        list.extend(found.context("give numbers of devices, such as 0,1 or 0-7")?);
    }
    let twice = (1..list.len()).any(|at| list[at] != DeviceChoice::Cpu && list[..at].contains(&list[at]));
    ensure!(!twice, "a device is named twice; name each once");
    ensure!(list.len() <= DEVICES_MAX, "give at most {DEVICES_MAX} devices");
    Ok(Devices(list))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn addresses_are_of_this_machine() {
        let tcp = |host: &str, port| Address::Tcp(host.parse().unwrap(), port);
        for (text, expected) in [
            ("127.0.0.1:8000", tcp("127.0.0.1", 8000)),
            ("localhost:0", tcp("127.0.0.1", 0)),
            ("0.0.0.0:80", tcp("0.0.0.0", 80)),
            ("[::1]:8000", tcp("::1", 8000)),
            ("unix:/run/edit.sock", Address::Unix("/run/edit.sock".into())),
        ] {
            assert_eq!(address(text).unwrap(), expected);
        }
        for text in ["", "8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "example.org:80", "unix:"] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices_are_numbers_and_ranges() {
        use DeviceChoice::{Cpu, Cuda};
        for (text, expected) in [
            ("0", vec![Cuda(0)]),
            ("0,2", vec![Cuda(0), Cuda(2)]),
            ("0-2", vec![Cuda(0), Cuda(1), Cuda(2)]),
            ("cpu,cpu", vec![Cpu; 2]),
        ] {
            assert_eq!(devices(text).unwrap().0, expected);
        }
        for text in ["", "a", "1-0", "0,0", "0-64", "0,,1", "0,b"] {
            assert!(devices(text).is_err(), "{text}");
        }
        assert!(devices("0-63").is_ok());
    }

    #[test]
    fn origins_have_no_path() {
        assert_eq!(origin("https://Example.org:8443").unwrap(), "https://example.org:8443");
        for text in ["*", "example.org", "https://", "https://example.org/", "https://a b"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_end_where_they_say() {
        let job = |flags: &[&str]| -> Result<ServeJob> {
            let cli = crate::cli::Cli::try_parse_from([&["step1x-edit", "serve"], flags].concat())?;
            let crate::cli::Command::Serve(args) = cli.command else { anyhow::bail!("not a server") };
            args.job(vec![])
        };
        assert_eq!(job(&[]).unwrap().listen, Address::Tcp([127, 0, 0, 1].into(), 8000));
        assert_eq!(job(&["--queue", "1000", "--deadline", "86400"]).unwrap().queue, 1000);
        for flags in [["--queue", "1001"], ["--deadline", "86401"], ["--deadline", "0"], ["--devices", "0-64"]] {
            assert!(job(&flags).is_err(), "{flags:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        for (bytes, right) in [(65_536, true), (65_537, false)] {
            std::fs::write(&path, "k".repeat(bytes)).unwrap();
            assert_eq!(job(&["--api-key-file", path.to_str().unwrap()]).is_ok(), right, "{bytes}");
        }
    }
}
