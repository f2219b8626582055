//! Which row of a per-branch table each row of a stream uses.

use std::fmt;

use anyhow::Result;

use super::Unsupported;

/// The row of a per-branch table that each row of a stream uses. The stream repeats a period of runs (rows, branch), once
/// a step; the table has one row a step and branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchRows(pub Vec<(usize, usize)>);

impl BranchRows {
    /// One run for each branch, in order.
    pub fn of(rows: &[usize]) -> BranchRows {
        BranchRows(rows.iter().copied().enumerate().map(|(branch, rows)| (rows, branch)).collect())
    }

    /// These runs, then those of `other`.
    pub fn then(&self, other: &BranchRows) -> BranchRows {
        BranchRows([&self.0[..], &other.0].concat())
    }

    /// Rows of one period.
    pub fn period(&self) -> usize {
        self.0.iter().map(|(rows, _)| rows).sum()
    }

    /// Number of branches.
    pub fn branches(&self) -> usize {
        self.0.iter().map(|(_, branch)| branch + 1).max().unwrap_or(0)
    }

    /// Table row for stream row `row`.
    pub fn table_row(&self, row: usize) -> usize {
        let (step, mut within) = (row / self.period(), row % self.period());
        for &(rows, branch) in &self.0 {
            if within < rows {
                return step * self.branches() + branch;
            }
            within -= rows;
        }
        unreachable!("a remainder is less than the period")
    }

    /// Checks that a stream of `rows` rows and a table of `table` rows fit together.
    pub(super) fn check(&self, rows: usize, table: usize) -> Result<()> {
        let steps = rows / self.period();
        anyhow::ensure!(
            rows == steps * self.period() && table == steps * self.branches(),
            "{rows} rows in periods of {self} need {} table rows, but there are {table}",
            steps * self.branches()
        );
        Ok(())
    }
}

/// [`BranchRows`] as kernels take them (`branches.cuh`).
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
pub(super) struct BranchParams {
    period: u32,
    branches: u32,
    ends: [u32; BranchRows::MOST_RUNS],
    branch: [u32; BranchRows::MOST_RUNS],
}

impl BranchRows {
    /// Runs that a kernel takes.
    pub(super) const MOST_RUNS: usize = 6;

    /// Refuses what [`BranchRows::params`] cannot hold.
    pub(super) fn fits(&self) -> Result<(), Unsupported> {
        match self.0.len() {
            n if n <= BranchRows::MOST_RUNS => Ok(()),
            n => Unsupported::new(format!("the rows have {n} runs; the kernel takes at most {}", BranchRows::MOST_RUNS)),
        }
    }

    pub(super) fn params(&self) -> BranchParams {
        let period = self.period() as u32;
        let (mut ends, mut branch) = ([period; BranchRows::MOST_RUNS], [0; BranchRows::MOST_RUNS]);
        let mut end = 0;
        for (i, &(rows, b)) in self.0.iter().enumerate() {
            end += rows as u32;
            (ends[i], branch[i]) = (end, b as u32);
        }
        BranchParams { period, branches: self.branches() as u32, ends, branch }
    }
}

impl fmt::Display for BranchRows {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let runs: Vec<String> = self.0.iter().map(|(rows, branch)| format!("{rows}:{branch}")).collect();
        f.write_str(&runs.join(" "))
    }
}
