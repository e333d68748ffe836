"""The paper's Table 1 on the open benchmark: five systems, docs/paper_table.md."""
