"""The app that Flower sends around; feddlp itself is installed everywhere."""
