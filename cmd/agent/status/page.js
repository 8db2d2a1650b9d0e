addEventListener("load", () => setTimeout(() => { // a stream that begins earlier keeps the page loading
  const say = (text) => { const live = document.getElementById("live"); if (live && live.textContent !== text) live.textContent = text; };
  const source = new EventSource("/live" + location.search);
  source.onopen = () => say(", live");
  source.onerror = () => say(", connection lost: this may be old");
  source.addEventListener("page", (event) => {
    Idiomorph.morph(document.querySelector("main"), event.data, {
      ignoreActiveValue: true,
      callbacks: { beforeAttributeUpdated: (name) => name !== "open" && name !== "checked" },
    });
    document.title = document.querySelector("main").dataset.title || document.title;
    say(", live");
  });
}));
