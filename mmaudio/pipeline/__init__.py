"""The whole job, from a folder of videos to a report: plan, stages and comparisons of settings."""
