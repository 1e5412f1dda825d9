// Tables that are wider than the screen scroll, and then the keyboard reaches them.
import React, {useEffect, useRef, useState} from 'react';
import MDXComponents from '@theme-original/MDXComponents';

function Table(props) {
  const place = useRef(null);
  const [scrolls, setScrolls] = useState(false);
  useEffect(() => {
    const watcher = new ResizeObserver(([{target}]) => setScrolls(target.scrollWidth > target.clientWidth));
    watcher.observe(place.current);
    return () => watcher.disconnect();
  }, []);
  return (
    <div className="table-place" ref={place} tabIndex={scrolls ? 0 : undefined}>
      <table {...props} />
    </div>
  );
}

export default {...MDXComponents, table: Table};
