//! `cargo xtask gpu-check`: whether Grace reads of this host's GPUs what `nvidia-smi` does.
//!
//! Needs no source tree and no compiler once both programs are built: `xtask gpu-check --bin grace` on a host with a GPU.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{build, process};

/// The driver of a large host takes some seconds to be loaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// Compares Grace's readings of GPUs with those of nvidia-smi (needs an NVIDIA GPU).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Check this grace instead of building one
    #[arg(long, value_name = "PATH")]
    bin: Option<PathBuf>,
    /// Ask this nvidia-smi
    #[arg(long, value_name = "PATH", default_value = "nvidia-smi")]
    nvidia_smi: PathBuf,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let Ok(smi) = process::output(process::program(&args.nvidia_smi).args(["-q", "-x"])) else {
        println!(
            "gpu-check: there is no GPU to check here: `{} -q -x` does not work. Nothing was compared.",
            args.nvidia_smi.display()
        );
        return Ok(ExitCode::from(2));
    };
    let smi = String::from_utf8_lossy(&smi).into_owned();
    let grace = match &args.bin {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => build::agent(true)?,
    };
    let seen = ask_grace(&grace)?;
    println!(
        "driver {}, as Grace says: {}",
        text(&smi, &["driver_version"]).unwrap_or("unknown"),
        seen["detail"]
    );
    let mut wrong = 0;
    let mut line = |gpu: &str, what: &str, ours: String, theirs: String, same: bool| {
        println!(
            "{} {gpu} {what}: {ours}, nvidia-smi {theirs}",
            if same { "same     " } else { "DIFFERENT" }
        );
        wrong += usize::from(!same);
    };
    let theirs = all(&smi, "gpu");
    let ours = seen["gpus"].as_array().map(Vec::as_slice).unwrap_or_default();
    line("host", "GPUs", ours.len().to_string(), theirs.len().to_string(), ours.len() == theirs.len());
    for xml in theirs {
        let uuid = text(xml, &["uuid"]).unwrap_or_default();
        let Some(gpu) = ours.iter().find(|gpu| gpu["uuid"] == uuid) else {
            line(uuid, "GPU", "not seen".into(), "there".into(), false);
            continue;
        };
        let index = gpu["index"].to_string();
        for reading in READINGS {
            let Some(theirs) = reading.paths.iter().find_map(|path| text(xml, path)) else { continue };
            let ours = &gpu[reading.key];
            let (same, shown) = reading.compare(ours, theirs);
            line(&index, reading.key, shown, theirs.to_owned(), same);
        }
        let pids = |xml: &str| -> BTreeSet<u64> {
            let compute = all(xml, "process_info")
                .into_iter()
                .filter(|p| text(p, &["type"]).is_some_and(|t| t.contains('C')));
            compute.filter_map(|p| text(p, &["pid"])?.parse().ok()).collect()
        };
        let of_ours: BTreeSet<u64> =
            gpu["processes"].as_array().into_iter().flatten().filter_map(|p| p["pid"].as_u64()).collect();
        let of_theirs = pids(xml);
        line(&index, "processes", format!("{of_ours:?}"), format!("{of_theirs:?}"), of_ours == of_theirs);
    }
    println!("{}", if wrong == 0 { "gpu-check: all the same" } else { "gpu-check: there are differences" });
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What both tell, and how far apart two looks at a moment's distance may be.
struct Reading {
    /// Grace's name.
    key: &'static str,
    /// Where it stands in the XML, by driver.
    paths: &'static [&'static [&'static str]],
    how: How,
}

/// How two readings are compared.
enum How {
    /// The same words.
    Words,
    /// `Enabled` is yes.
    Switch,
    /// Numbers this far apart, after Grace's was divided by so much.
    Number { apart: f64, divide: f64 },
}

const READINGS: &[Reading] = &[
    Reading { key: "name", paths: &[&["product_name"]], how: How::Words },
    Reading {
        key: "memory_total",
        paths: &[&["fb_memory_usage", "total"]],
        how: How::Number { apart: 1.0, divide: 1_048_576.0 },
    },
    Reading {
        key: "temperature_c",
        paths: &[&["temperature", "gpu_temp"]],
        how: How::Number { apart: 4.0, divide: 1.0 },
    },
    Reading {
        key: "slowdown_c",
        paths: &[&["temperature", "gpu_temp_slow_threshold"]],
        how: How::Number { apart: 0.0, divide: 1.0 },
    },
    Reading {
        key: "power_w",
        paths: &[
            &["gpu_power_readings", "average_power_draw"],
            &["gpu_power_readings", "power_draw"],
            &["power_readings", "power_draw"],
        ],
        how: How::Number { apart: 60.0, divide: 1.0 },
    },
    Reading {
        key: "power_limit_w",
        paths: &[&["gpu_power_readings", "current_power_limit"], &["power_readings", "enforced_power_limit"]],
        how: How::Number { apart: 1.0, divide: 1.0 },
    },
    Reading {
        key: "pcie_width",
        paths: &[&["pci_gpu_link_info", "link_widths", "current_link_width"]],
        how: How::Number { apart: 0.0, divide: 1.0 },
    },
    Reading {
        key: "pcie_generation_max",
        paths: &[&["pci_gpu_link_info", "pcie_gen", "max_link_gen"]],
        how: How::Number { apart: 0.0, divide: 1.0 },
    },
    Reading {
        key: "pcie_replays",
        paths: &[&["replay_counter"]],
        how: How::Number { apart: 5.0, divide: 1.0 },
    },
    Reading { key: "ecc", paths: &[&["ecc_mode", "current_ecc"]], how: How::Switch },
    Reading { key: "mig", paths: &[&["mig_mode", "current_mig"]], how: How::Switch },
    Reading { key: "persistence", paths: &[&["persistence_mode"]], how: How::Switch },
    Reading {
        key: "remapped_correctable",
        paths: &[&["remapped_rows", "remapped_row_corr"]],
        how: How::Number { apart: 0.0, divide: 1.0 },
    },
    Reading {
        key: "remapped_uncorrectable",
        paths: &[&["remapped_rows", "remapped_row_unc"]],
        how: How::Number { apart: 0.0, divide: 1.0 },
    },
];

impl Reading {
    /// Whether they are the same, and Grace's as it is shown.
    fn compare(&self, ours: &Value, theirs: &str) -> (bool, String) {
        // What neither has is the same.
        if theirs.starts_with("N/A") || theirs.starts_with("[N/A]") {
            return (ours.is_null(), ours.to_string());
        }
        match self.how {
            How::Words => (ours == theirs, ours.to_string()),
            How::Switch => (ours.as_bool() == Some(theirs == "Enabled"), ours.to_string()),
            How::Number { apart, divide } => {
                let end = theirs.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(theirs.len());
                let theirs: Option<f64> = theirs.get(..end).and_then(|number| number.parse().ok());
                let ours = ours.as_f64().map(|number| number / divide);
                let same = ours.zip(theirs).is_some_and(|(ours, theirs)| (ours - theirs).abs() <= apart);
                (same, ours.map_or_else(|| "null".to_owned(), |number| format!("{number:.1}")))
            }
        }
    }
}

/// Starts an agent that only observes, in a folder of its own, and asks it once it has seen the GPUs.
fn ask_grace(grace: &std::path::Path) -> Result<Value> {
    let dir = std::env::temp_dir().join(format!("grace-gpu-check-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let socket = dir.join("socket");
    let mut agent = process::program(grace);
    agent
        .args(["run", "--mode", "observe", "--quiet", "--state-dir"])
        .arg(dir.join("state"))
        .arg("--socket")
        .arg(&socket);
    let mut agent = agent.stdin(Stdio::null()).spawn().context("cannot start grace")?;
    let began = Instant::now();
    let view = loop {
        let mut ask = process::program(grace);
        ask.arg("--socket").arg(&socket).args(["gpu", "--json"]).stderr(Stdio::null());
        let view: Option<Value> =
            process::output(&mut ask).ok().and_then(|out| serde_json::from_slice(&out).ok());
        match view {
            Some(view) if view["gpus"].as_array().is_some_and(|gpus| !gpus.is_empty()) => break Ok(view),
            Some(view) if began.elapsed() > PATIENCE => break Ok(view),
            _ if began.elapsed() > PATIENCE => break Err(anyhow::anyhow!("grace does not answer")),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    // It may have ended by itself.
    drop(agent.kill());
    drop(agent.wait());
    drop(std::fs::remove_dir_all(&dir));
    let view = view?;
    if view["gpus"].as_array().is_none_or(Vec::is_empty) {
        bail!("grace sees no GPU where nvidia-smi does: {}", view["detail"]);
    }
    Ok(view)
}

/// What stands between `<name …>` and `</name>`, each time.
fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut out = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find(&open) {
        let from = &rest[at + open.len()..];
        // `<gpu ` or `<gpu>`, not `<gpu_name>`.
        if !from.starts_with([' ', '>']) {
            rest = from;
            continue;
        }
        let (Some(begin), Some(end)) = (from.find('>'), from.find(&close)) else { break };
        out.push(from.get(begin + 1..end).unwrap_or_default());
        rest = &from[end..];
    }
    out
}

/// The text at a path of names.
fn text<'a>(xml: &'a str, path: &[&str]) -> Option<&'a str> {
    let inner = path.iter().try_fold(xml, |xml, name| all(xml, name).first().copied())?;
    Some(inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_xml_of_nvidia_smi_is_read() {
        let xml = "<log><driver_version>580.1</driver_version><gpu id=\"0\"><gpu_name>x</gpu_name><uuid>GPU-1</uuid>\
                   <temperature><gpu_temp>41 C</gpu_temp></temperature></gpu><gpu id=\"1\"><uuid>GPU-2</uuid></gpu></log>";
        assert_eq!(text(xml, &["driver_version"]), Some("580.1"));
        let gpus = all(xml, "gpu");
        assert_eq!(gpus.len(), 2);
        assert_eq!(text(gpus[0], &["temperature", "gpu_temp"]), Some("41 C"));
        assert_eq!(text(gpus[1], &["uuid"]), Some("GPU-2"));
        let heat = READINGS.iter().find(|r| r.key == "temperature_c").unwrap();
        assert!(heat.compare(&serde_json::json!(43), "41 C").0);
        assert!(!heat.compare(&serde_json::json!(50), "41 C").0);
        assert!(heat.compare(&Value::Null, "N/A").0);
    }
}
