//! A VM's definition: what the recovery side needs to start it, and nothing of the place it came from.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A VM, defined in TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDefinition {
    pub vcpus: u32,
    pub memory_mib: u64,
    #[serde(default = "default_machine")]
    pub machine: String,
    /// `kvm` or `tcg`.
    #[serde(default = "default_accelerator")]
    pub accelerator: String,
    #[serde(default = "default_cpu")]
    pub cpu: String,
    #[serde(default)]
    pub graphics: Graphics,
    /// Files, relative to the definition; they are copied to the recovery side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
}

/// The screen of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Graphics {
    /// It has none: its console is its serial line.
    #[default]
    None,
    Vga,
    Virtio,
}

/// A definition that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("VM definition: {0}")]
pub struct DefinitionError(String);

fn default_machine() -> String {
    "q35".into()
}

fn default_accelerator() -> String {
    "kvm".into()
}

fn default_cpu() -> String {
    "max".into()
}

impl VmDefinition {
    /// Reads TOML text.
    ///
    /// # Errors
    /// [`DefinitionError`] with the place and the allowed values.
    pub fn parse(text: &str) -> Result<Self, DefinitionError> {
        let definition: Self = toml::from_str(text).map_err(|error| DefinitionError(error.to_string()))?;
        let refuse = |what: String| Err(DefinitionError(what));
        if !(1..=512).contains(&definition.vcpus) {
            return refuse(format!("vcpus = {} is out of range: use 1 to 512", definition.vcpus));
        }
        if !(16..=16 << 20).contains(&definition.memory_mib) {
            return refuse(format!(
                "memory_mib = {} is out of range: use 16 to 16777216",
                definition.memory_mib
            ));
        }
        if !["kvm", "tcg"].contains(&definition.accelerator.as_str()) {
            return refuse(format!("accelerator = {:?}: use kvm or tcg", definition.accelerator));
        }
        for word in [&definition.machine, &definition.cpu] {
            if word.is_empty() || !word.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
                return refuse(format!("{word:?}: use letters, digits, '-', '.' and '_'"));
            }
        }
        Ok(definition)
    }

    /// The same definition with its files seen from `folder`.
    pub fn with_files_in(mut self, folder: &Path) -> Self {
        for path in [&mut self.kernel, &mut self.initrd, &mut self.firmware].into_iter().flatten() {
            *path = folder.join(&*path);
        }
        self
    }

    /// The definition as TOML text.
    ///
    /// # Errors
    /// Where a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, DefinitionError> {
        toml::to_string(self).map_err(|error| DefinitionError(error.to_string()))
    }

    /// The files it names, by the name they have on both sides.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        [("kernel", &self.kernel), ("initrd", &self.initrd), ("firmware", &self.firmware)]
            .into_iter()
            .filter_map(|(name, path)| path.as_deref().map(|path| (name, path)))
            .collect()
    }
}
