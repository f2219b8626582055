//! What `--help` says beside the flags: commands in groups, examples, exit codes.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;

use clap::{CommandFactory, FromArgMatches};

use super::{Cli, normalise};
use crate::error::printable;

pub(super) const EXIT_CODES: &str = "Exit codes: 0 done, 1 the picture could not be read, made or written, 2 usage, 3 model files, \
                                     4 no device or not enough memory, 130 interrupted \
                                     (143 by SIGTERM, 129 by SIGHUP).";

pub(super) const DOCTORS_CODES: &str = "Exit codes: 0 edits can run on the GPU; otherwise 16 plus 1 without a driver or a device with \
                                        kernels, 2 without NVRTC, 4 without cuBLASLt.";

pub(super) const EXAMPLES: &str = "Examples:
  step1x-edit edit -i examples/shapes.png -p \"make the circle blue\" -o edited.png
  step1x-edit edit -m MODEL_FOLDER -i photo.jpg -p \"turn day into night\" -o night.png";

pub(super) const BATCH_EXAMPLES: &str = "Examples:
  step1x-edit batch prompts.json -o edited -m v1.1
  step1x-edit batch photos -p \"make it snow\" -o snow -m v1.1 --resume";

pub(super) const GEDIT_EXAMPLES: &str = "Examples:
  step1x-edit gedit GEdit-Bench -o results --model-name ours -m v1.1 --size-level 1024
  step1x-edit gedit --summary scores";

pub(super) const SERVE_EXAMPLES: &str = "Examples:
  step1x-edit serve
  step1x-edit serve -m v1.1 --listen 0.0.0.0:8000 --api-key-file keys.txt

The page is at the address that it prints. It stops in order on Ctrl-C or SIGTERM, with exit code 0.";

pub(super) const PULL_EXAMPLES: &str = "Examples:
  step1x-edit pull v1.1 --dry-run
  step1x-edit pull v1.1 && step1x-edit edit -m v1.1 -i photo.jpg -p \"make it snow\" -o snow.png";

pub(super) const OP_EXAMPLES: &str = "Examples:
  step1x-edit op --list
  step1x-edit op attention --case 14
  step1x-edit op linear --case gelu --shape 4096x3072,12288x3072,12288";

/// What people come for, and the commands that do it.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Use", &["edit", "batch", "gedit", "serve", "demo", "pull"]),
    ("Look", &["inspect", "doctor"]),
    ("Measure", &["bench", "profile", "op"]),
    ("Check", &["verify", "compare", "judge"]),
    ("Make", &["synth"]),
];

/// The arguments as flags. Prints help or a usage error and ends the process where they ask or call for it.
pub fn parse(args: impl Iterator<Item = OsString>) -> Cli {
    let matches = command().try_get_matches_from(normalise(args));
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| end(&error))
}

/// Prints help or an error and ends the process. An error repeats what was given, which clap would print as it is.
fn end(error: &clap::Error) -> ! {
    let text = error.to_string();
    match printable(&text) {
        Cow::Borrowed(_) => error.exit(),
        Cow::Owned(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            std::process::exit(error.exit_code())
        }
    }
}

/// The command line with its commands in groups: clap knows one heading for all.
fn command() -> clap::Command {
    let command = Cli::command();
    let mut groups = String::new();
    for (group, names) in GROUPS {
        groups += &format!("{group}:\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            groups += &format!("  {name:<9}{}\n", about.map(ToString::to_string).unwrap_or_default());
        }
        groups += "\n";
    }
    command.help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}\n\n\
         \"step1x-edit COMMAND -h\" lists the flags that matter, \"step1x-edit COMMAND --help\" all.{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let commands = Cli::command();
        let mut known: Vec<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        known.sort_unstable();
        assert_eq!(grouped, known);
        let help = command().render_help().to_string();
        assert!(known.iter().all(|name| help.contains(&format!("\n  {name:<9}"))), "{help}");
        assert!(help.lines().filter(|line| line.starts_with("  ")).all(|line| line.len() <= 100), "{help}");
    }

    #[test]
    fn the_short_help_of_edit_is_a_screen_and_the_long_one_whole() {
        let mut commands = command();
        let edit = commands.find_subcommand_mut("edit").unwrap();
        // Of both counts, one is --help's own.
        let (short, long) = (edit.render_help().to_string(), edit.render_long_help().to_string());
        // A dash and a space begin one of a flag's values.
        let is_flag = |line: &&str| line.trim_start().starts_with('-') && !line.trim_start().starts_with("- ");
        let flags = |help: &str| help.lines().filter(is_flag).count();
        let all = edit.get_arguments().filter(|argument| argument.get_long().is_some()).count();
        assert_eq!((flags(&short), flags(&long)), (9 + 1, all), "{short}");
        assert!(short.lines().count() <= 36, "{short}");
        for heading in ["Prompt:", "Picture:", "Sampling:", "Device:", "Output:", "Exact savings:", "Examples:"] {
            assert!(long.contains(heading), "no {heading} in {long}");
        }
    }
}
