-- Each mart counts each staged flight once, with the same outcome: no join lost a flight or doubled one.
{% set marts = ['delays_by_carrier', 'delays_by_route', 'delays_by_hour', 'on_time_by_aircraft_age'] %}

with staged as (

    select
        count(*) as flights,
        count(*) filter (where outcome = 'on_time') as on_time,
        count(*) filter (where outcome = 'delayed') as delayed,
        count(*) filter (where outcome = 'cancelled') as cancelled,
        count(*) filter (where outcome = 'diverted') as diverted
    from {{ ref('stg_flights') }}

),

counted as (

    {% for mart in marts -%}
    select
        '{{ mart }}' as mart,
        coalesce(sum(flights), 0) as flights,
        coalesce(sum(on_time), 0) as on_time,
        coalesce(sum(delayed), 0) as delayed,
        coalesce(sum(cancelled), 0) as cancelled,
        coalesce(sum(diverted), 0) as diverted
    from {{ ref(mart) }}
    {% if not loop.last %}union all{% endif %}
    {% endfor %}
)

select counted.*
from counted
cross join staged
where (counted.flights, counted.on_time, counted.delayed, counted.cancelled, counted.diverted)
    is distinct from (staged.flights, staged.on_time, staged.delayed, staged.cancelled, staged.diverted)
