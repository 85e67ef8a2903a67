// Before anything is drawn: the theme somebody chose, else the system's.
"use strict";
const chosenTheme = localStorage.getItem("gridveil-theme");
if (chosenTheme === "light" || chosenTheme === "dark") {
  document.documentElement.dataset.theme = chosenTheme;
}
