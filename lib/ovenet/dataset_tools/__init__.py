"""Tools for datasets: drawn scenes, drafts from folders, conversion of annotations, audits."""
