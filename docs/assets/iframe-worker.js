// The search runs in a Worker, which browsers refuse on pages that are read from files. There, this
// class runs the script of the worker in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow, page = inside.document;
      page.open();
      page.close();
      // What the script posts is for this page.
      inside.postMessage = data => setTimeout(() => {
        const event = new MessageEvent("message", {data});
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      });
      const script = page.createElement("script");
      this.loaded = new Promise(resolve => script.onload = resolve);
      script.src = url;
      (page.body || page.documentElement).append(script);
    }

    postMessage(data) {
      const inside = this.frame.contentWindow;
      this.loaded.then(() => inside.dispatchEvent(new inside.MessageEvent("message", {data})));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
