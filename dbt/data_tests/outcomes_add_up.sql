-- In every row of every mart the four outcomes make up the flights, and no outcome is counted twice.
{% set marts = ['delays_by_carrier', 'delays_by_route', 'delays_by_hour', 'on_time_by_aircraft_age'] %}

{% for mart in marts -%}
select '{{ mart }}' as mart, flights, on_time, delayed, cancelled, diverted
from {{ ref(mart) }}
where flights <> on_time + delayed + cancelled + diverted
{% if not loop.last %}union all{% endif %}
{% endfor %}
