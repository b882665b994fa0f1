//! Energy by the counters of Linux (RAPL): what the processors took, and their memory where it is counted.

use std::path::{Path, PathBuf};

/// Where Linux has the counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// A meter that runs.
///
/// A counter turns over after some minutes of full load (its range is some 262 kJ). One turn is seen between two looks, so call
/// [`EnergyMeter::sample`] at least once a minute.
#[derive(Debug)]
pub struct EnergyMeter {
    zones: Vec<Zone>,
    /// A counter could not be read any more.
    is_lost: bool,
}

#[derive(Debug)]
struct Zone {
    counter: PathBuf,
    range_uj: u64,
    last_uj: u64,
    taken_uj: u64,
}

impl EnergyMeter {
    /// Begin to count at the counters below `root` ([`POWERCAP`]): all processor packages and, where they are apart, their memory. `None`
    /// where there are none or they cannot be read; on most machines only the administrator may.
    pub fn start(root: &Path) -> Option<Self> {
        let mut zones = Vec::new();
        let mut has_package = false;
        for entry in fs_err::read_dir(root).ok()?.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| name.starts_with("intel-rapl:")) {
                continue;
            }
            // Cores are counted in their package, and `psys` counts packages again.
            let name = fs_err::read_to_string(entry.path().join("name")).unwrap_or_default();
            let is_package = name.trim().starts_with("package-");
            if is_package || name.trim() == "dram" {
                zones.push(Zone::open(&entry.path())?);
                has_package |= is_package;
            }
        }
        has_package.then_some(Self { zones, is_lost: false })
    }

    /// Look at the counters.
    pub fn sample(&mut self) {
        for zone in &mut self.zones {
            self.is_lost |= zone.sample().is_none();
        }
    }

    /// Joules since the start. `None` where a counter could not be read any more.
    pub fn joules(&mut self) -> Option<f64> {
        self.sample();
        let taken: f64 = self.zones.iter().map(|zone| zone.taken_uj as f64).sum();
        (!self.is_lost).then_some(taken / 1e6)
    }
}

impl Zone {
    fn open(folder: &Path) -> Option<Self> {
        let counter = folder.join("energy_uj");
        let range_uj = number(&folder.join("max_energy_range_uj"))?;
        let last_uj = number(&counter)?;
        Some(Self { counter, range_uj, last_uj, taken_uj: 0 })
    }

    fn sample(&mut self) -> Option<()> {
        let now = number(&self.counter)?;
        let taken = match now.checked_sub(self.last_uj) {
            Some(taken) => taken,
            None => self.range_uj.checked_sub(self.last_uj)?.saturating_add(now),
        };
        self.taken_uj = self.taken_uj.saturating_add(taken);
        self.last_uj = now;
        Some(())
    }
}

fn number(path: &Path) -> Option<u64> {
    fs_err::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(root: &Path, folder: &str, name: &str, energy: u64) {
        let folder = root.join(folder);
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::write(folder.join("name"), format!("{name}\n")).unwrap();
        fs_err::write(folder.join("max_energy_range_uj"), "10000000\n").unwrap();
        fs_err::write(folder.join("energy_uj"), format!("{energy}\n")).unwrap();
    }

    #[test]
    fn packages_and_memory_are_counted_over_a_turn() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        zone(root, "intel-rapl:0", "package-0", 9_000_000);
        zone(root, "intel-rapl:0:0", "core", 5);
        zone(root, "intel-rapl:0:1", "dram", 100);
        zone(root, "intel-rapl:1", "package-1", 0);
        zone(root, "intel-rapl:2", "psys", 7);
        fs_err::create_dir_all(root.join("intel-rapl")).unwrap();
        let mut meter = EnergyMeter::start(root).unwrap();
        assert_eq!(meter.joules(), Some(0.0));
        zone(root, "intel-rapl:0", "package-0", 500_000);
        zone(root, "intel-rapl:0:0", "core", 9_999_999);
        zone(root, "intel-rapl:0:1", "dram", 250_100);
        zone(root, "intel-rapl:1", "package-1", 2_000_000);
        zone(root, "intel-rapl:2", "psys", 9_999_999);
        // 1.5 over the turn, 0.25 and 2.
        assert_eq!(meter.joules(), Some(3.75));
        zone(root, "intel-rapl:0", "package-0", 400_000);
        meter.sample();
        assert_eq!(meter.joules(), Some(3.75 + 9.9));
        fs_err::remove_file(root.join("intel-rapl:1/energy_uj")).unwrap();
        assert_eq!(meter.joules(), None);
    }

    #[test]
    fn without_counters_nothing_is_measured() {
        let root = tempfile::tempdir().unwrap();
        assert!(EnergyMeter::start(&root.path().join("nowhere")).is_none());
        assert!(EnergyMeter::start(root.path()).is_none());
        zone(root.path(), "intel-rapl:0:1", "dram", 1);
        assert!(EnergyMeter::start(root.path()).is_none());
        zone(root.path(), "intel-rapl:0", "package-0", 1);
        assert!(EnergyMeter::start(root.path()).is_some());
        fs_err::write(root.path().join("intel-rapl:0/energy_uj"), "much").unwrap();
        assert!(EnergyMeter::start(root.path()).is_none());
    }
}
